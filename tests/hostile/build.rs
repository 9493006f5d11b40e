//! Builds the guests, and tells `lib.rs` where their components lie.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../wit");
    let guests = ["hostile", "scan", "plain", "asking"];
    match millgate_plugin_build::build_guests(&guests) {
        Ok(components) => {
            for (guest, component) in guests.iter().zip(components) {
                let name = guest.to_uppercase();
                println!("cargo::rustc-env=GUEST_{name}={}", component.display());
            }
        }
        Err(error) => {
            for line in error.to_string().lines() {
                println!("cargo::error={line}");
            }
        }
    }
}
