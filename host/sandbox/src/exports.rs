#![allow(
    unsafe_code,
    reason = "names the type of a function of which it was checked before; see `Checked`"
)]
//! Where a component's exports are: looked up once at load, so that no call looks up a name.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};

use wasmtime::Store;
use wasmtime::component::{
    Component, ComponentExportIndex, ComponentNamedList, Instance, Lift, Lower, Resource,
    ResourceAny, TypedFunc,
};

use crate::contract::compliance::Verdict;
use crate::contract::types::StageError;
use crate::contract::{Interface, PACKAGE};
use crate::imports::Context;
use crate::state::CallState;

/// Finds an export in an instance as a function of a type.
pub(crate) trait Lookup<P, R> {
    /// The function; an error where the component's is of another type.
    fn function(
        &self,
        instance: &Instance,
        store: &mut Store<CallState>,
    ) -> wasmtime::Result<TypedFunc<P, (R,)>>;
}

impl<P, R> Lookup<P, R> for ComponentExportIndex
where
    P: ComponentNamedList + Lower,
    (R,): ComponentNamedList + Lift,
{
    fn function(
        &self,
        instance: &Instance,
        store: &mut Store<CallState>,
    ) -> wasmtime::Result<TypedFunc<P, (R,)>> {
        instance.get_typed_func(store, self)
    }
}

/// The parameters and the answer of a function that is called so often that the comparison of its type with the
/// component's (0.3 µs a call) is made once for each component.
pub(crate) trait Signature {
    /// The parameters; `'a` is the text that they borrow.
    type Params<'a>: ComponentNamedList + Lower;
    /// The answer.
    type Answer;
}

/// `[constructor]inspection`.
pub(crate) struct New;

impl Signature for New {
    type Params<'a> = (Resource<Context>,);
    type Answer = ResourceAny;
}

/// `[method]inspection.push`.
pub(crate) struct Push;

impl Signature for Push {
    type Params<'a> = (ResourceAny, &'a [&'a str]);
    type Answer = Result<Verdict, StageError>;
}

/// `[method]inspection.finish`.
pub(crate) struct Finish;

impl Signature for Finish {
    type Params<'a> = (ResourceAny,);
    type Answer = Result<Verdict, StageError>;
}

/// An export whose type is compared with its signature at the first call only. It belongs to one component: all
/// instances that it is looked up in are instances of that component.
pub(crate) struct Checked<S> {
    index: ComponentExportIndex,
    fits: AtomicBool,
    signature: PhantomData<S>,
}

impl<S> Checked<S> {
    fn new(index: ComponentExportIndex) -> Self {
        Checked {
            index,
            fits: AtomicBool::new(false),
            signature: PhantomData,
        }
    }
}

impl<'a, S: Signature> Lookup<S::Params<'a>, S::Answer> for Checked<S>
where
    (S::Answer,): ComponentNamedList + Lift,
{
    fn function(
        &self,
        instance: &Instance,
        store: &mut Store<CallState>,
    ) -> wasmtime::Result<TypedFunc<S::Params<'a>, (S::Answer,)>> {
        if !self.fits.load(Ordering::Relaxed) {
            let function = instance.get_typed_func(&mut *store, self.index)?;
            self.fits.store(true, Ordering::Relaxed);
            return Ok(function);
        }
        let function = instance
            .get_func(store, self.index)
            .ok_or_else(|| wasmtime::Error::msg("the export is gone"))?;
        // SAFETY: a component's export has one type in all its instances, and that type was compared with this very
        // signature when `fits` was set. The signature is fixed by `S`, apart from the lifetime of borrowed text.
        Ok(unsafe { TypedFunc::new_unchecked(function) })
    }
}

/// The functions of `compliance`.
pub(crate) struct ComplianceExports {
    pub(crate) new: Checked<New>,
    pub(crate) push: Checked<Push>,
    pub(crate) finish: Checked<Finish>,
}

/// The functions of `monitoring`.
pub(crate) struct MonitoringExports {
    pub(crate) observe: ComponentExportIndex,
    pub(crate) tick: ComponentExportIndex,
    pub(crate) merge: ComponentExportIndex,
    pub(crate) keep: KeepExports,
}

/// The functions of `deployment`.
pub(crate) struct DeploymentExports {
    pub(crate) route: ComponentExportIndex,
    pub(crate) review: ComponentExportIndex,
    pub(crate) keep: KeepExports,
}

/// How an actor's state is saved and restored.
#[derive(Clone, Copy)]
pub(crate) struct KeepExports {
    pub(crate) save: ComponentExportIndex,
    pub(crate) restore: ComponentExportIndex,
}

/// All functions of a component that the host calls.
pub(crate) struct Exports {
    pub(crate) configure: ComponentExportIndex,
    pub(crate) compliance: Option<ComplianceExports>,
    pub(crate) validate: Option<ComponentExportIndex>,
    pub(crate) evaluate: Option<ComponentExportIndex>,
    pub(crate) monitoring: Option<MonitoringExports>,
    pub(crate) deployment: Option<DeploymentExports>,
}

impl Exports {
    /// Finds the exports of `interfaces`. `names` are the component's exports as they stand in
    /// it, with whatever patch version it was built for.
    pub(crate) fn find(
        component: &Component,
        names: &[String],
        interfaces: &[Interface],
    ) -> Result<Exports, String> {
        let find = |interface: &str, function: &str| {
            let prefix = format!("{PACKAGE}/{interface}@");
            names
                .iter()
                .find(|name| name.starts_with(&prefix))
                .and_then(|name| component.get_export_index(None, name))
                .and_then(|instance| component.get_export_index(Some(&instance), function))
                .ok_or_else(|| format!("does not export {interface}.{function}"))
        };
        let keep = |interface: &str| {
            Ok::<_, String>(KeepExports {
                save: find(interface, "save")?,
                restore: find(interface, "restore")?,
            })
        };
        let mut exports = Exports {
            configure: find("lifecycle", "configure")?,
            compliance: None,
            validate: None,
            evaluate: None,
            monitoring: None,
            deployment: None,
        };
        for interface in interfaces {
            let name = interface.name();
            match interface {
                Interface::Validation => exports.validate = Some(find(name, "validate")?),
                Interface::Evaluation => exports.evaluate = Some(find(name, "evaluate")?),
                Interface::Compliance => {
                    exports.compliance = Some(ComplianceExports {
                        new: Checked::new(find(name, "[constructor]inspection")?),
                        push: Checked::new(find(name, "[method]inspection.push")?),
                        finish: Checked::new(find(name, "[method]inspection.finish")?),
                    });
                }
                Interface::Monitoring => {
                    exports.monitoring = Some(MonitoringExports {
                        observe: find(name, "observe")?,
                        tick: find(name, "tick")?,
                        merge: find(name, "merge")?,
                        keep: keep(name)?,
                    });
                }
                Interface::Deployment => {
                    exports.deployment = Some(DeploymentExports {
                        route: find(name, "route")?,
                        review: find(name, "review")?,
                        keep: keep(name)?,
                    });
                }
            }
        }
        Ok(exports)
    }
}
