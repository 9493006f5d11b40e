//! Between the generated exports and the traits: finds the configured plugin and calls it.
#![allow(unsafe_code, reason = "`cabi_realloc` is raw memory by its nature")]

use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::marker::PhantomData;

use crate::bindings::host::millgate::stage::context::Context as ContextResource;
use crate::bindings::{compliance, deployment, evaluation, lifecycle, monitoring, validation};
use crate::{
    Answer, Arm, Choice, Compliance, Context, Deployment, Evaluation, Event, Installed, Judgement,
    Label, Monitoring, Recommendation, Report, Rollout, Sample, Scores, StageError, Validation,
    Verdict, plugin,
};

pub use crate::plugin::Cell;

/// The type that the exports are made for.
pub struct Guest<P>(PhantomData<P>);

/// The host's context as the plugin sees it.
fn view(ctx: &ContextResource) -> Context<'_> {
    #[cfg(target_family = "wasm")]
    return Context::new(ctx);
    #[cfg(not(target_family = "wasm"))]
    {
        let _ = ctx;
        Context::new(crate::testing::MockContext::anonymous())
    }
}

impl<P: Installed> lifecycle::exports::millgate::stage::lifecycle::Guest for Guest<P> {
    fn configure(config: String) -> Result<(), StageError> {
        #[cfg(target_family = "wasm")]
        crate::panic::install_hook();
        let plugin = plugin::configure::<P>(&config)?;
        P::cell().set(plugin);
        crate::memory::seal();
        Ok(())
    }
}

impl<P: Installed + Validation> validation::exports::millgate::stage::validation::Guest
    for Guest<P>
{
    fn validate(ctx: &ContextResource, samples: Vec<Sample>) -> Result<Vec<Judgement>, StageError> {
        P::cell().with(|plugin| plugin.validate(&view(ctx), &samples))
    }
}

impl<P: Installed + Evaluation> evaluation::exports::millgate::stage::evaluation::Guest
    for Guest<P>
{
    fn evaluate(ctx: &ContextResource, answers: Vec<Answer>) -> Result<Scores, StageError> {
        P::cell().with(|plugin| plugin.evaluate(&view(ctx), &answers))
    }
}

impl<P: Installed + Monitoring> monitoring::exports::millgate::stage::monitoring::Guest
    for Guest<P>
{
    fn observe(events: Vec<Event>) -> Result<Report, StageError> {
        P::cell().with_mut(|plugin| plugin.observe(events))
    }

    fn tick(now_ms: u64) -> Result<Report, StageError> {
        P::cell().with_mut(|plugin| plugin.tick(now_ms))
    }

    fn save() -> Result<Vec<u8>, StageError> {
        P::cell().with(Monitoring::save)
    }

    fn restore(state: Vec<u8>) -> Result<(), StageError> {
        P::cell().with_mut(|plugin| Monitoring::restore(plugin, &state))
    }

    fn merge(state: Vec<u8>) -> Result<(), StageError> {
        P::cell().with_mut(|plugin| plugin.merge(&state))
    }
}

impl<P: Installed + Deployment> deployment::exports::millgate::stage::deployment::Guest
    for Guest<P>
{
    fn route(
        ctx: &ContextResource,
        features: Vec<Label>,
        arms: Vec<Arm>,
    ) -> Result<Choice, StageError> {
        P::cell().with_mut(|plugin| plugin.route(&view(ctx), &features, &arms))
    }

    fn review(rollout: Rollout) -> Result<Recommendation, StageError> {
        P::cell().with_mut(|plugin| plugin.review(&rollout))
    }

    fn save() -> Result<Vec<u8>, StageError> {
        P::cell().with(Deployment::save)
    }

    fn restore(state: Vec<u8>) -> Result<(), StageError> {
        P::cell().with_mut(|plugin| Deployment::restore(plugin, &state))
    }
}

impl<P: Installed + Compliance> compliance::exports::millgate::stage::compliance::Guest
    for Guest<P>
{
    type Inspection = Inspection<P>;
}

/// One segment under inspection. A constructor cannot fail in the contract, so what it has to say
/// is said at the first push.
pub struct Inspection<P: Compliance>(RefCell<Result<P::Inspection, StageError>>);

impl<P: Installed + Compliance> Inspection<P> {
    fn with(
        &self,
        call: impl FnOnce(&P, &mut P::Inspection) -> Result<Verdict, StageError>,
    ) -> Result<Verdict, StageError> {
        match &mut *self.0.borrow_mut() {
            Ok(inspection) => P::cell().with(|plugin| call(plugin, inspection)),
            Err(error) => Err(error.clone()),
        }
    }
}

impl<P: Installed + Compliance> compliance::exports::millgate::stage::compliance::GuestInspection
    for Inspection<P>
{
    fn new(ctx: &ContextResource) -> Self {
        Inspection(RefCell::new(
            P::cell().with(|plugin| Ok(plugin.begin(&view(ctx)))),
        ))
    }

    fn push(&self, chunks: Vec<String>) -> Result<Verdict, StageError> {
        self.with(|plugin, inspection| plugin.push(inspection, &chunks))
    }

    fn finish(&self) -> Result<Verdict, StageError> {
        self.with(Compliance::finish)
    }
}

/// Memory for an argument that the host is about to write.
///
/// # Safety
/// For the canonical ABI: `old` is null with size 0 or came from here with `old_size` and `align`.
#[must_use]
pub unsafe fn cabi_realloc(old: *mut u8, old_size: usize, align: usize, size: usize) -> *mut u8 {
    use alloc::alloc::{Layout, alloc, handle_alloc_error, realloc};

    if size == 0 {
        return core::ptr::without_provenance_mut(align);
    }
    let Ok(layout) = Layout::from_size_align(size, align) else {
        return core::ptr::null_mut();
    };
    // SAFETY: the size is not zero; the old layout is the one that it was allocated with.
    let new = unsafe {
        if old_size == 0 {
            alloc(layout)
        } else {
            realloc(
                old,
                Layout::from_size_align_unchecked(old_size, align),
                size,
            )
        }
    };
    if new.is_null() {
        handle_alloc_error(layout);
    }
    new
}
