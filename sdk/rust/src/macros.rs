//! The macro that makes a component of a plugin.

/// Makes a component of a plugin: its exports, its memory, and its manifest, which is the file
/// `plugin.toml` beside the crate's `Cargo.toml`. Call it once, at the root of the crate.
///
/// ```ignore
/// millgate_sdk::plugin!(Words: Compliance);
/// millgate_sdk::plugin!(Words: Compliance + Validation);
/// ```
///
/// The interfaces are `Validation`, `Compliance`, `Monitoring`, `Deployment` and `Evaluation`.
/// [`WholeText`](crate::WholeText) and [`Windowed`](crate::Windowed) plugins are `Compliance`.
///
/// Natively it implements [`Installed`](crate::Installed) and nothing else, so a plugin is an
/// ordinary library there.
#[macro_export]
macro_rules! plugin {
    ($plugin:ident : $first:ident $(+ $rest:ident)*) => {
        const _: () = {
            static CELL: $crate::guest::Cell<$plugin> = $crate::guest::Cell::new();

            impl $crate::Installed for $plugin {
                const MANIFEST: &'static str =
                    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/plugin.toml"));

                fn cell() -> &'static $crate::guest::Cell<Self> {
                    &CELL
                }
            }
        };

        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, reason = "the exports of a component are raw functions")]
        const _: () = {
            type Exports = $crate::guest::Guest<$plugin>;
            $crate::bindings::lifecycle::export!(Exports with_types_in $crate::bindings::lifecycle);
            $crate::__export!($first Exports);
            $( $crate::__export!($rest Exports); )*

            #[used]
            #[unsafe(link_section = "millgate:manifest")]
            static MANIFEST: [u8; <$plugin as $crate::Installed>::MANIFEST.len()] =
                *include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/plugin.toml"));
        };

        #[cfg(target_family = "wasm")]
        $crate::__allocator!($first $($rest)*);
        #[cfg(target_family = "wasm")]
        $crate::__realloc!();
    };
}

/// One interface's exports.
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    (Validation $exports:ident) => {
        $crate::bindings::validation::export!($exports with_types_in $crate::bindings::validation);
    };
    (Compliance $exports:ident) => {
        $crate::bindings::compliance::export!($exports with_types_in $crate::bindings::compliance);
    };
    (Monitoring $exports:ident) => {
        $crate::bindings::monitoring::export!($exports with_types_in $crate::bindings::monitoring);
    };
    (Deployment $exports:ident) => {
        $crate::bindings::deployment::export!($exports with_types_in $crate::bindings::deployment);
    };
    (Evaluation $exports:ident) => {
        $crate::bindings::evaluation::export!($exports with_types_in $crate::bindings::evaluation);
    };
    ($other:ident $exports:ident) => {
        compile_error!(concat!(
            "`", stringify!($other), "` is no stage interface: use Validation, Compliance, Monitoring, Deployment or Evaluation"
        ));
    };
}

/// A heap for what lives long, a bump pointer for what is thrown away.
#[doc(hidden)]
#[macro_export]
macro_rules! __allocator {
    () => {
        #[global_allocator]
        static ALLOCATOR: $crate::memory::Bump = $crate::memory::Bump::new();
    };
    (Monitoring $($rest:ident)*) => {
        #[global_allocator]
        static ALLOCATOR: $crate::memory::Heap = $crate::memory::Heap::new();
    };
    (Deployment $($rest:ident)*) => {
        #[global_allocator]
        static ALLOCATOR: $crate::memory::Heap = $crate::memory::Heap::new();
    };
    ($other:ident $($rest:ident)*) => {
        $crate::__allocator!($($rest)*);
    };
}

/// The function by which the host places arguments; with `std` the standard library has it.
#[cfg(not(feature = "std"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __realloc {
    () => {
        #[allow(unsafe_code, reason = "the canonical ABI's own allocation function")]
        const _: () = {
            /// # Safety
            /// Called by the canonical ABI alone, with what it was given before.
            #[unsafe(export_name = "cabi_realloc")]
            unsafe extern "C" fn cabi_realloc(
                old: *mut u8,
                old_size: usize,
                align: usize,
                size: usize,
            ) -> *mut u8 {
                // SAFETY: passed on as it came.
                unsafe { $crate::guest::cabi_realloc(old, old_size, align, size) }
            }
        };
    };
}

/// The function by which the host places arguments; with `std` the standard library has it.
#[cfg(feature = "std")]
#[doc(hidden)]
#[macro_export]
macro_rules! __realloc {
    () => {};
}
