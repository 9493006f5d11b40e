//! The first-party plugins as Wasm components, inside the binary: `millgate quickstart` needs no
//! file but itself.

/// A plugin that ships with Millgate.
#[derive(Clone, Copy)]
pub struct FirstParty {
    /// The name by which a stage's `plugin` key asks for it.
    pub name: &'static str,
    /// The component, its manifest inside.
    pub wasm: &'static [u8],
}

/// All of them.
#[must_use]
pub fn all() -> &'static [FirstParty] {
    include!(concat!(env!("OUT_DIR"), "/plugins.rs"))
}

/// One of them, by name.
#[must_use]
pub fn get(name: &str) -> Option<&'static FirstParty> {
    all().iter().find(|plugin| plugin.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plugin_is_a_component_that_carries_its_manifest() {
        for plugin in all() {
            // Magic, then version 13 of layer 1: a component.
            assert_eq!(
                plugin.wasm.get(..8),
                Some(b"\0asm\x0d\0\x01\0".as_slice()),
                "{}",
                plugin.name
            );
            let section = b"millgate:manifest";
            assert!(
                plugin
                    .wasm
                    .windows(section.len())
                    .any(|window| window == section),
                "{}",
                plugin.name
            );
        }
    }

    #[test]
    fn a_plugin_without_std_asks_for_no_wasi() {
        for plugin in all() {
            assert!(
                !plugin.wasm.windows(5).any(|window| window == b"wasi:"),
                "{}",
                plugin.name
            );
        }
    }
}
