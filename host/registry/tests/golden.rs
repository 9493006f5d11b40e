//! Packaging is the one of `wkg`, byte for byte: the files under `tests/golden` were made by the
//! libraries that it uses (`tests/golden/make`).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests may panic")]

use millgate_registry::{Digest, Package};
use std::time::{Duration, UNIX_EPOCH};

const COMPONENT: &[u8] = include_bytes!("golden/component.wasm");
const CONFIG: &[u8] = include_bytes!("golden/config.json");
const MANIFEST: &[u8] = include_bytes!("golden/manifest.json");

#[test]
fn a_package_is_byte_for_byte_that_of_wkg() {
    // 2026-01-02T03:04:05Z.
    let created = UNIX_EPOCH + Duration::from_secs(1_767_323_045);
    let packed = Package::new(COMPONENT, "probe", "1.2.0")
        .unwrap()
        .created(created)
        .description("A probe.")
        .licenses("Apache-2.0")
        .pack()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert_eq!(text(&packed.config), text(CONFIG));
    assert_eq!(text(&packed.manifest), text(MANIFEST));
    assert_eq!(packed.digest(), Digest::of(MANIFEST));
    assert_eq!(packed.component, COMPONENT);
}

#[test]
fn what_is_no_component_is_not_packaged() {
    for (bytes, why) in [
        (&b""[..], "no WebAssembly component"),
        (b"\0asm\x01\0\0\0", "core module"),
        (b"\0asm\x0d\0\x01\0\xff", "no WebAssembly component"),
        (&COMPONENT[..100], "no WebAssembly component"),
        (b"#!/bin/sh", "no WebAssembly component"),
    ] {
        let error = Package::new(bytes, "probe", "1.2.0")
            .unwrap_err()
            .to_string();
        assert!(error.contains(why), "{error}");
    }
    let error = Package::new(COMPONENT, "probe", "1.2")
        .unwrap_err()
        .to_string();
    assert!(error.contains("MAJOR.MINOR.PATCH"), "{error}");
}
