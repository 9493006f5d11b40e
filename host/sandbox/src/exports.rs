//! Where a component's exports are: looked up once at load, so that no call looks up a name.

use wasmtime::component::{Component, ComponentExportIndex};

use crate::contract::{Interface, PACKAGE};

/// The functions of `compliance`.
pub(crate) struct ComplianceExports {
    pub(crate) new: ComponentExportIndex,
    pub(crate) push: ComponentExportIndex,
    pub(crate) finish: ComponentExportIndex,
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
                        new: find(name, "[constructor]inspection")?,
                        push: find(name, "[method]inspection.push")?,
                        finish: find(name, "[method]inspection.finish")?,
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
