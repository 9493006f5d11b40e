//! The contract of `wit/` as Rust types. One world generates everything that is imported, and one
//! small world for each exported interface reuses those types, so that a component may export
//! several interfaces and all of them speak of the same `Finding`.
#![allow(
    unsafe_code,
    missing_docs,
    rust_2018_idioms,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code: the canonical ABI is raw pointers"
)]

/// What the host gives: the imports, and the types that all interfaces share.
pub mod host {
    wit_bindgen::generate!({
        inline: "package millgate:sdk-imports; world imports { include millgate:stage/host@0.1.0; import millgate:stage/context@0.1.0; }",
        path: "../../wit",
        world: "millgate:sdk-imports/imports",
        additional_derives: [PartialEq],
        generate_all,
    });
}

/// Every plugin.
pub mod lifecycle {
    wit_bindgen::generate!({
        inline: "package millgate:sdk-lifecycle; world lifecycle-export { export millgate:stage/lifecycle@0.1.0; }",
        path: "../../wit",
        world: "millgate:sdk-lifecycle/lifecycle-export",
        pub_export_macro: true,
        additional_derives: [PartialEq],
        with: {
            "millgate:stage/types@0.1.0": crate::bindings::host::millgate::stage::types,
            "millgate:stage/lifecycle@0.1.0": generate,
        },
    });
}

/// Is this data well formed?
pub mod validation {
    wit_bindgen::generate!({
        inline: "package millgate:sdk-validation; world validation-export { export millgate:stage/validation@0.1.0; }",
        path: "../../wit",
        world: "millgate:sdk-validation/validation-export",
        pub_export_macro: true,
        additional_derives: [PartialEq],
        with: {
            "millgate:stage/types@0.1.0": crate::bindings::host::millgate::stage::types,
            "millgate:stage/context@0.1.0": crate::bindings::host::millgate::stage::context,
            "millgate:stage/validation@0.1.0": generate,
        },
    });
}

/// Is this text allowed?
pub mod compliance {
    wit_bindgen::generate!({
        inline: "package millgate:sdk-compliance; world compliance-export { export millgate:stage/compliance@0.1.0; }",
        path: "../../wit",
        world: "millgate:sdk-compliance/compliance-export",
        pub_export_macro: true,
        additional_derives: [PartialEq],
        with: {
            "millgate:stage/types@0.1.0": crate::bindings::host::millgate::stage::types,
            "millgate:stage/context@0.1.0": crate::bindings::host::millgate::stage::context,
            "millgate:stage/compliance@0.1.0": generate,
        },
    });
}

/// Is something changing?
pub mod monitoring {
    wit_bindgen::generate!({
        inline: "package millgate:sdk-monitoring; world monitoring-export { export millgate:stage/monitoring@0.1.0; }",
        path: "../../wit",
        world: "millgate:sdk-monitoring/monitoring-export",
        pub_export_macro: true,
        additional_derives: [PartialEq],
        with: {
            "millgate:stage/types@0.1.0": crate::bindings::host::millgate::stage::types,
            "millgate:stage/monitoring@0.1.0": generate,
        },
    });
}

/// Who gets the new version?
pub mod deployment {
    wit_bindgen::generate!({
        inline: "package millgate:sdk-deployment; world deployment-export { export millgate:stage/deployment@0.1.0; }",
        path: "../../wit",
        world: "millgate:sdk-deployment/deployment-export",
        pub_export_macro: true,
        additional_derives: [PartialEq],
        with: {
            "millgate:stage/types@0.1.0": crate::bindings::host::millgate::stage::types,
            "millgate:stage/context@0.1.0": crate::bindings::host::millgate::stage::context,
            "millgate:stage/deployment@0.1.0": generate,
        },
    });
}

/// Is this answer good?
pub mod evaluation {
    wit_bindgen::generate!({
        inline: "package millgate:sdk-evaluation; world evaluation-export { export millgate:stage/evaluation@0.1.0; }",
        path: "../../wit",
        world: "millgate:sdk-evaluation/evaluation-export",
        pub_export_macro: true,
        additional_derives: [PartialEq],
        with: {
            "millgate:stage/types@0.1.0": crate::bindings::host::millgate::stage::types,
            "millgate:stage/context@0.1.0": crate::bindings::host::millgate::stage::context,
            "millgate:stage/evaluation@0.1.0": generate,
        },
    });
}
