//! One instance in its store: made, called under its limits, and thrown away.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{ComponentNamedList, Instance, InstancePre, Lift, Lower, ResourceAny};
use wasmtime::{Engine, Store, Trap, UpdateDeadline};

use crate::call::CallContext;
use crate::contract::types::StageError;
use crate::engine::ticks;
use crate::exports::Lookup;
use crate::failure::Failure;
use crate::fault::{clip, scrub};
use crate::imports::wasi::Wasi;
use crate::permits::Permit;
use crate::state::{CallState, OutOfMemory, Shared, bump};

/// The most bytes of a failure's message.
const MESSAGE: usize = 2048;

/// How an instance is to be run.
#[derive(Clone, Copy)]
pub(crate) struct Mode {
    /// Its calls may wait for the host, so they run on a stack of their own.
    pub(crate) is_async: bool,
    /// Only `configure` is called.
    pub(crate) configuring: bool,
}

/// An instance and its store. Dropping it is the clean-up. After a failure other than an error
/// that the plugin returned, it must not be called again.
pub(crate) struct Live {
    store: Store<CallState>,
    instance: Instance,
    is_async: bool,
    /// Calls made so far.
    pub(crate) calls: u32,
    /// Given back when the store is gone: fields are dropped in order.
    _permit: Option<Permit>,
}

impl Live {
    /// Makes an instance.
    pub(crate) async fn new(
        engine: &Engine,
        pre: &InstancePre<CallState>,
        shared: &Arc<Shared>,
        context: CallContext,
        mode: Mode,
        permit: Option<Permit>,
    ) -> Result<Live, Failure> {
        let limits = shared.spec.limits;
        let state = CallState::new(shared.clone(), context, mode.configuring);
        let mut store = Store::new(engine, state);
        store.limiter(|state| &mut state.memory);
        store.set_hostcall_fuel(usize::try_from(limits.output_bytes).unwrap_or(usize::MAX));
        store.set_max_component_handles(limits.handles as usize);
        let deadline = if mode.configuring {
            limits.configure_deadline
        } else {
            limits.deadline
        };
        store.set_epoch_deadline(ticks(deadline));
        let made = if mode.is_async {
            if !mode.configuring {
                let budget = ticks(deadline);
                store.data_mut().ticks_left = budget;
                store.set_epoch_deadline(1);
                store.epoch_deadline_callback(yield_or_interrupt);
            }
            pre.instantiate_async(&mut store).await
        } else {
            pre.instantiate(&mut store)
        };
        bump(&shared.counters.instances);
        match made {
            Ok(instance) => Ok(Live {
                store,
                instance,
                is_async: mode.is_async,
                calls: 0,
                _permit: permit,
            }),
            Err(error) => Err(failure(&store, &error, deadline)),
        }
    }

    /// Who the next calls are for.
    pub(crate) fn set_context(&mut self, context: CallContext) {
        let state = self.store.data_mut();
        state.context = context;
        // The clock and the random numbers follow this request, not those before it.
        state.wasi = Wasi::default();
    }

    /// `configure` has been called: from here on it is an instance like any other.
    pub(crate) fn configured(&mut self) {
        self.store.data_mut().configuring = false;
        if self.is_async {
            self.store.epoch_deadline_callback(yield_or_interrupt);
        }
    }

    /// Lets the next calls copy this many bytes out of the guest.
    pub(crate) fn allow_output(&mut self, bytes: u64) {
        self.store
            .set_hostcall_fuel(usize::try_from(bytes).unwrap_or(usize::MAX));
    }

    /// Calls a function whose answer cannot be an error.
    pub(crate) async fn call_plain<P, R>(
        &mut self,
        export: &impl Lookup<P, R>,
        params: P,
    ) -> Result<R, Failure>
    where
        P: ComponentNamedList + Lower + Send,
        R: Lift + Send + Sync + 'static,
        (R,): ComponentNamedList + Lift,
    {
        let limits = *self.store.data().limits();
        let configuring = self.store.data().configuring;
        let deadline = if configuring {
            limits.configure_deadline
        } else {
            limits.deadline
        };
        self.calls = self.calls.saturating_add(1);
        self.store.data_mut().begin_call();
        let called = match export.function(&self.instance, &mut self.store) {
            // Nothing waits for the host in `configure`, so it needs no timer, and no runtime.
            Ok(function) if self.is_async && configuring => {
                self.store.set_epoch_deadline(ticks(deadline));
                function.call_async(&mut self.store, params).await
            }
            Ok(function) if self.is_async => {
                self.store.data_mut().ticks_left = ticks(deadline);
                self.store.set_epoch_deadline(1);
                let call = function.call_async(&mut self.store, params);
                match tokio::time::timeout(limits.call_timeout, call).await {
                    Ok(called) => called,
                    Err(_) => {
                        return Err(Failure::Timeout {
                            limit: limits.call_timeout,
                        });
                    }
                }
            }
            Ok(function) => {
                self.store.set_epoch_deadline(ticks(deadline));
                function.call(&mut self.store, params)
            }
            Err(error) => Err(error),
        };
        self.store.data().note_memory();
        match called {
            Ok((answer,)) => Ok(answer),
            Err(error) => Err(failure(&self.store, &error, deadline)),
        }
    }

    /// Calls a function that returns a `result<R, stage-error>`.
    pub(crate) async fn call<P, R>(
        &mut self,
        export: &impl Lookup<P, Result<R, StageError>>,
        params: P,
    ) -> Result<R, Failure>
    where
        P: ComponentNamedList + Lower + Send,
        R: Lift + Send + Sync + 'static,
    {
        match self
            .call_plain::<P, Result<R, StageError>>(export, params)
            .await?
        {
            Ok(answer) => Ok(answer),
            Err(mut error) => {
                error.code = clip(&scrub(&error.code), 128).to_owned();
                error.message = clip(&scrub(&error.message), MESSAGE).to_owned();
                Err(Failure::Stage(error))
            }
        }
    }

    /// Runs the destructor of a resource that the guest gave out.
    pub(crate) async fn drop_resource(&mut self, resource: ResourceAny) -> Result<(), Failure> {
        let deadline = self.store.data().limits().deadline;
        let dropped = if self.is_async {
            self.store.data_mut().ticks_left = ticks(deadline);
            self.store.set_epoch_deadline(1);
            resource.resource_drop_async(&mut self.store).await
        } else {
            self.store.set_epoch_deadline(ticks(deadline));
            resource.resource_drop(&mut self.store)
        };
        dropped.map_err(|error| failure(&self.store, &error, deadline))
    }

    /// The store and the instance, for what is done to them at load.
    pub(crate) fn parts(&mut self) -> (&mut Store<CallState>, Instance) {
        (&mut self.store, self.instance)
    }
}

/// What happens at each tick of an asynchronous call: it lets others run, until it has computed
/// as long as it may. Only ticks that find it computing count, so waiting for a model is free.
fn yield_or_interrupt(
    mut cx: wasmtime::StoreContextMut<'_, CallState>,
) -> wasmtime::Result<UpdateDeadline> {
    let state = cx.data_mut();
    if state.ticks_left == 0 {
        return Ok(UpdateDeadline::Interrupt);
    }
    state.ticks_left -= 1;
    Ok(UpdateDeadline::Yield(1))
}

/// An error of the engine in the words of the contract.
fn failure(store: &Store<CallState>, error: &wasmtime::Error, deadline: Duration) -> Failure {
    let state = store.data();
    if let Some(OutOfMemory { limit }) = error.downcast_ref() {
        return Failure::Memory { limit: *limit };
    }
    if error
        .downcast_ref::<wasmtime::PoolConcurrencyLimitError>()
        .is_some()
    {
        return Failure::Unavailable {
            why: format!("{error}"),
        };
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => return Failure::Timeout { limit: deadline },
        Some(trap) => {
            let mut message = match trap {
                Trap::StackOverflow => "the call stack is exhausted".to_owned(),
                Trap::UnreachableCodeReached if !state.fault.is_empty() => "panic".to_owned(),
                other => other.to_string(),
            };
            if !state.fault.is_empty() {
                message = format!("{message}: {}", state.fault.text());
            }
            return Failure::Trap { message };
        }
        None => {}
    }
    let root = scrub(&error.root_cause().to_string());
    if root.contains("fuel allocated for hostcalls has been exhausted") {
        return Failure::Oversized {
            what: format!(
                "it copies more than {} bytes out of the guest",
                state.limits().output_bytes
            ),
        };
    }
    let root = clip(&root, MESSAGE).to_owned();
    // An error that passed through the guest came from a host function; one that did not is
    // about the answer itself: text that is no UTF-8, a pointer out of bounds.
    if error.downcast_ref::<wasmtime::WasmBacktrace>().is_some() {
        let message = match state.fault.is_empty() {
            true => root,
            false => format!("{root}: {}", state.fault.text()),
        };
        return Failure::Trap { message };
    }
    Failure::Invalid { why: root }
}
