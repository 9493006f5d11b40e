//! The data folder opened without a server, for commands that only read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use millgate_ops::replay::InputStore;
use millgate_ops::{Generations, Traces};
use millgate_store::audit::{self, AuditError, AuditReport};
use millgate_store::{AuditLog, Blobs, SledOptions, SledStore, Store};

/// A data folder's store.
pub struct Storage {
    data: PathBuf,
    store: Arc<dyn Store>,
}

impl Storage {
    /// Opens it. A running server holds it for itself.
    pub fn open(data: &Path) -> Result<Self> {
        let path = data.join("store");
        if !path.exists() {
            bail!(
                "{} holds no data yet; name another folder with --data",
                data.display()
            );
        }
        Ok(Self {
            data: data.to_owned(),
            store: open_store(data)?,
        })
    }

    /// The traces in it.
    pub fn traces(&self) -> Result<Traces> {
        let blobs = Blobs::open(self.data.join("blobs"))?;
        Ok(Traces::open(self.store.clone(), Arc::new(blobs))?)
    }

    /// The generations in it.
    pub fn generations(&self) -> Result<Generations> {
        Ok(Generations::open(self.store.clone(), &self.data)?)
    }

    /// What is kept of requests for replays.
    pub fn inputs(&self) -> Result<Arc<InputStore>> {
        let blobs = Arc::new(Blobs::open(self.data.join("blobs"))?);
        Ok(InputStore::open(
            self.store.clone(),
            blobs,
            self.data.clone(),
        )?)
    }

    /// Erases what is kept of the requests of a tenant, or of one of its end users; audited.
    pub fn erase_inputs(&self, tenant: &str, user: Option<&str>) -> Result<u64> {
        let audit = AuditLog::open(self.store.clone(), self.data.join("audit.key"))?;
        let keys = self.inputs()?.erase(tenant, user)?;
        let of = if user.is_some() {
            "an end user"
        } else {
            "the tenant"
        };
        let body = serde_json::json!({ "keys": keys, "of": of });
        audit.append("cli", "inputs.erased", &format!("tenant:{tenant}"), body)?;
        Ok(keys)
    }

    /// Checks the audit log in it. The log is not opened for writing, which a damaged one would refuse before the
    /// bad entry is found.
    pub fn verify_audit(&self) -> Result<Result<AuditReport, AuditError>> {
        let key = audit::public_key(self.data.join("audit.key"))?;
        Ok(audit::verify(&*self.store, key.as_deref(), None))
    }
}

/// Opens the store of a data folder, made if it is not there.
pub fn open_store(data: &Path) -> Result<Arc<dyn Store>> {
    let path = data.join("store");
    std::fs::create_dir_all(data).with_context(|| {
        format!(
            "cannot create {}; choose another folder with --data",
            data.display()
        )
    })?;
    Ok(Arc::new(SledStore::open(&path, SledOptions::default())?))
}
