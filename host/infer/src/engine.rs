//! The engine: a model that runs on a thread of its own and serves many requests at once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::fairness::Tenants;
use crate::grammar::{Grammars, Matching};
use crate::network::SessionOptions;
use crate::ops::PAGE_TOKENS;
use crate::output::Output;
use crate::pace::retry_after;
use crate::prefix::Namespace;
use crate::sampling::Sampler;
use crate::scheduler::{Scheduler, most_outputs};
use crate::sequence::{Generating, Goal, Sequence, Terms, text_of};
use crate::{
    Caller, ChatMessage, Error, Event, GenerateRequest, Grammar, Model, ModelKind, Prompt, Result,
    TokenScore,
};

/// Most strings of `stop` and of `ban`, and most bytes of each.
const MOST_STRINGS: usize = 64;
const LONGEST_STRING: usize = 4096;
/// Texts of one call that are embedded at the same time.
const EMBED_AT_ONCE: usize = 4;
/// Most alternatives with a token.
const MOST_LOGPROBS: u8 = 20;

/// How an engine is set up.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Threads that compute; 0 takes one for each physical core.
    pub threads: usize,
    /// Requests that are computed at once.
    pub max_sequences: usize,
    /// Requests that may wait beyond those; one more is refused with [`Error::QueueFull`], or takes the place of one
    /// whose tenant has more requests in the queue.
    pub queue: usize,
    /// Memory for the keys and values of all requests, in bytes, those kept for later requests with the same
    /// beginning included. It is taken from the system as it is used.
    pub kv_bytes: usize,
    /// Prompt tokens computed in one step at most.
    pub prefill_chunk: usize,
    /// How long a step may take while answers are under way: fewer prompt tokens are computed in it where, by the
    /// steps so far, more would take longer (but always some). Changes no answer.
    pub max_step: Duration,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            threads: 0,
            max_sequences: 16,
            queue: 64,
            kv_bytes: 512 << 20,
            prefill_chunk: 256,
            max_step: Duration::from_millis(50),
        }
    }
}

/// Counts and gauges of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Requests that wait.
    pub queued: usize,
    /// Requests that are being computed.
    pub active: usize,
    /// Requests finished since the start, cancelled ones included.
    pub finished: u64,
    /// Requests whose client went away.
    pub cancelled: u64,
    /// Requests refused because the queue was full.
    pub refused: u64,
    /// Requests that were ended at their deadline.
    pub late: u64,
    /// Times that a request was set back to free KV memory for an older one.
    pub preempted: u64,
    /// Prompt tokens computed since the start, recomputed ones included.
    pub prompt_tokens: u64,
    /// Tokens generated since the start, those of rewinds included.
    pub generated_tokens: u64,
    /// Prompt tokens that were not computed, because others with the same beginning had been.
    pub hit_tokens: u64,
    /// KV pages (of 32 tokens) that no request uses, and that are kept for later ones.
    pub cached_pages: usize,
    /// Kept pages whose memory was given to other tokens, since the start.
    pub evictions: u64,
    /// KV memory of the requests that are being computed, in bytes.
    pub kv_bytes_used: usize,
    /// KV memory in all, in bytes.
    pub kv_bytes_total: usize,
}

/// What handles and the engine's thread share.
pub(crate) struct Shared {
    pub(crate) inbox: Mutex<Inbox>,
    pub(crate) wake: Condvar,
    pub(crate) counts: Counts,
}

/// Requests on their way to the thread.
#[derive(Default)]
pub(crate) struct Inbox {
    pub(crate) arrived: Vec<Sequence>,
    /// Requests in the engine: arrived, waiting or active.
    pub(crate) inside: usize,
    numbers: u64,
    pub(crate) tenants: Tenants,
    /// The last handle is gone.
    pub(crate) closing: bool,
    /// The thread has ended.
    pub(crate) stopped: bool,
}

/// The parts of [`Stats`] that threads write.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) active: AtomicUsize,
    pub(crate) finished: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) late: AtomicU64,
    pub(crate) preempted: AtomicU64,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) generated_tokens: AtomicU64,
    pub(crate) hit_tokens: AtomicU64,
    pub(crate) cached_pages: AtomicUsize,
    pub(crate) evictions: AtomicU64,
    pub(crate) kv_bytes_used: AtomicUsize,
    /// When the next request is expected to end, in nanoseconds from now.
    next_place: AtomicU64,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    pub(crate) fn next_place(&self) -> Duration {
        Duration::from_nanos(self.next_place.load(Ordering::Relaxed))
    }

    pub(crate) fn set_next_place(&self, after: Duration) {
        let nanos = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        self.next_place.store(nanos, Ordering::Relaxed);
    }
}

/// A handle to a running engine; clones share it. The engine ends when the last handle is dropped; what is
/// under way then finishes as cancelled.
#[derive(Clone)]
pub struct Engine {
    handle: Arc<Handle>,
}

struct Handle {
    model: Arc<Model>,
    shared: Arc<Shared>,
    options: EngineOptions,
    kv_bytes_total: usize,
    /// Tokens that the KV memory holds.
    kv_tokens: usize,
    grammars: Grammars,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_all();
    }
}

impl Engine {
    /// Starts the engine's threads and sets its KV memory aside.
    pub fn start(model: Arc<Model>, options: EngineOptions) -> Result<Self> {
        for (name, value) in [
            ("max_sequences", options.max_sequences),
            ("prefill_chunk", options.prefill_chunk),
        ] {
            if !(1..=4096).contains(&value) {
                return Err(Error::Invalid(format!("{name} must be from 1 to 4096")));
            }
        }
        let mut options = options;
        // An encoder computes a text in one step, and each of its rows has an output.
        if model.kind() == ModelKind::Encoder {
            let context = model.info().context as usize;
            options.prefill_chunk = options.prefill_chunk.max(context);
        }
        let session = model.session(SessionOptions {
            threads: options.threads,
            rows: options.prefill_chunk + options.max_sequences,
            outputs: most_outputs(&model, &options),
            kv_bytes: options.kv_bytes,
        })?;
        let (pages, page_bytes) = (session.pages(), session.page_bytes());
        if pages * page_bytes > options.kv_bytes {
            return Err(Error::Invalid(format!(
                "kv_bytes must be at least {page_bytes}, what {PAGE_TOKENS} tokens of this model take"
            )));
        }
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            wake: Condvar::new(),
            counts: Counts::default(),
        });
        let scheduler = Scheduler::new(
            Arc::clone(&model),
            Arc::clone(&shared),
            session,
            options.clone(),
        );
        let thread = std::thread::Builder::new()
            .name("infer-0".into())
            .spawn(move || scheduler.run());
        thread.map_err(|error| Error::Device(format!("no thread: {error}")))?;
        let (kv_bytes_total, kv_tokens) = (pages * page_bytes, pages * PAGE_TOKENS);
        Ok(Self {
            handle: Arc::new(Handle {
                model,
                shared,
                options,
                kv_bytes_total,
                kv_tokens,
                grammars: Grammars::default(),
            }),
        })
    }

    /// The model that it runs.
    pub fn model(&self) -> &Arc<Model> {
        &self.handle.model
    }

    /// Queues a request. Fails at once with [`Error::QueueFull`], [`Error::ContextExceeded`], [`Error::KvTooSmall`],
    /// [`Error::Invalid`], [`Error::Template`] or [`Error::Stopped`].
    pub fn generate(&self, request: GenerateRequest) -> Result<Generation> {
        let model = &self.handle.model;
        self.check_request(&request)?;
        let caller = request.caller();
        let mut tokens = match request.prompt {
            Prompt::Tokens(tokens) => tokens,
            Prompt::Text(text) => self.text_tokens(&text)?,
            Prompt::Chat(messages) => {
                self.check_length(messages.iter().map(length).sum())?;
                model.encode_chat(&messages, true)?
            }
            Prompt::Tools { messages, tools } => {
                self.check_length(messages.iter().map(length).sum())?;
                model.encode_tools(&messages, &tools)?
            }
        };
        self.check_length(request.continuation.len())?;
        let continuation = model.tokenizer().encode_rest(&request.continuation);
        let grammar = self.matching(request.grammar.as_ref(), &continuation)?;
        tokens.extend(continuation);
        let room = self.room(&tokens)?;
        let most = request
            .max_tokens
            .unwrap_or(GenerateRequest::DEFAULT_MAX_TOKENS) as usize;
        let (events, receiver) = mpsc::unbounded_channel();
        let goal = Goal::Generate(Box::new(Generating {
            sampler: Sampler::new(request.sampling, &tokens, model.vocabulary())?,
            text: Output::new(request.stop, request.ban),
            grammar,
            events,
            most_tokens: tokens.len() + most.min(room),
            top: usize::from(request.logprobs.unwrap_or(0)),
            banned: Vec::new(),
            rewinds: 0,
            first_token: None,
        }));
        self.submit(goal, tokens, 0, Terms::new(caller, request.adapter))?;
        Ok(Generation {
            events: receiver,
            ended: false,
        })
    }

    /// The grammar's matcher, behind the text that is there already.
    fn matching(
        &self,
        grammar: Option<&Grammar>,
        continuation: &[u32],
    ) -> Result<Option<Matching>> {
        let Some(grammar) = grammar else {
            return Ok(None);
        };
        let Handle {
            model, grammars, ..
        } = &*self.handle;
        let mut matching = grammars.matching(grammar, model.tokenizer())?;
        if matching.take_all(continuation)? {
            Ok(Some(matching))
        } else {
            Err(Error::Invalid(
                "the continuation does not follow the grammar".into(),
            ))
        }
    }

    /// How likely each token of a text is after those before it, with the `top` likeliest tokens at each place (at
    /// most 20).
    pub async fn score(&self, text: &str, top: u8, caller: Caller) -> Result<Vec<TokenScore>> {
        check_top(top)?;
        let model = &self.handle.model;
        self.check_decoder()?;
        let tokens = self.text_tokens(text)?;
        self.room(&tokens)?;
        // Without a token before the text, its first token follows nothing and has no likelihood.
        let first = tokens
            .first()
            .filter(|_| model.tokenizer().first().is_none());
        let first = first.map(|id| TokenScore {
            id: *id,
            text: text_of(model, *id),
            logprob: None,
            entropy: 0.0,
            top: Vec::new(),
        });
        let (reply, receiver) = oneshot::channel();
        self.submit(
            Goal::Score {
                scores: first.into_iter().collect(),
                last: None,
                top: usize::from(top),
                reply,
            },
            tokens,
            0,
            Terms::new(caller, None),
        )?;
        answer(receiver).await
    }

    /// Begins to score the tokens from `from` on, which is not the first; what answers them is awaited with
    /// [`answer`].
    pub(crate) fn begin_score(
        &self,
        mut tokens: Vec<u32>,
        from: usize,
        top: usize,
        terms: Terms,
    ) -> Result<oneshot::Receiver<Result<Vec<TokenScore>>>> {
        let last = tokens.pop();
        self.room(&tokens)?;
        let (reply, receiver) = oneshot::channel();
        let goal = Goal::Score {
            scores: Vec::new(),
            last,
            top,
            reply,
        };
        self.submit(goal, tokens, from.saturating_sub(1), terms)?;
        Ok(receiver)
    }

    /// One vector for each text: the mean of the last hidden states, of length 1.
    pub async fn embed(&self, texts: &[String], caller: Caller) -> Result<Vec<Vec<f32>>> {
        let last = self.handle.model.tokenizer().last();
        let tokens = texts.iter().map(|text| {
            let mut tokens = self.text_tokens(text)?;
            tokens.extend(last);
            Ok(tokens)
        });
        let tokens = tokens.collect::<Result<Vec<_>>>()?;
        self.embed_tokens(tokens, caller).await
    }

    /// The same for texts that are token ids already.
    pub async fn embed_tokens(
        &self,
        texts: Vec<Vec<u32>>,
        caller: Caller,
    ) -> Result<Vec<Vec<f32>>> {
        for tokens in &texts {
            check_ids(tokens, self.handle.model.vocabulary())?;
            self.room(tokens)?;
        }
        let mut out = Vec::with_capacity(texts.len());
        let mut waiting = VecDeque::new();
        for tokens in texts {
            // A few at once, so that a step has several texts, and a long list leaves the queue to others.
            if waiting.len() >= EMBED_AT_ONCE
                && let Some(first) = waiting.pop_front()
            {
                out.push(answer(first).await?);
            }
            let (reply, receiver) = oneshot::channel();
            self.submit(
                Goal::Embed {
                    sum: Vec::new(),
                    reply,
                },
                tokens,
                0,
                Terms::new(caller.clone(), None),
            )?;
            waiting.push_back(receiver);
        }
        for receiver in waiting {
            out.push(answer(receiver).await?);
        }
        Ok(out)
    }

    /// Counts and gauges, for metrics.
    pub fn stats(&self) -> Stats {
        let counts = &self.handle.shared.counts;
        let inside = self.handle.shared.lock().inside;
        let active = counts.active.load(Ordering::Relaxed).min(inside);
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Stats {
            queued: inside - active,
            active,
            finished: read(&counts.finished),
            cancelled: read(&counts.cancelled),
            refused: read(&counts.refused),
            late: read(&counts.late),
            preempted: read(&counts.preempted),
            prompt_tokens: read(&counts.prompt_tokens),
            generated_tokens: read(&counts.generated_tokens),
            hit_tokens: read(&counts.hit_tokens),
            cached_pages: counts.cached_pages.load(Ordering::Relaxed),
            evictions: read(&counts.evictions),
            kv_bytes_used: counts.kv_bytes_used.load(Ordering::Relaxed),
            kv_bytes_total: self.handle.kv_bytes_total,
        }
    }

    /// Bytes of a KV page.
    pub(crate) fn page_bytes(&self) -> usize {
        self.handle.kv_bytes_total / (self.handle.kv_tokens / PAGE_TOKENS)
    }

    /// Tokens that may follow so many.
    fn room_after(&self, tokens: usize) -> Result<usize> {
        let context = self.handle.model.info().context as usize;
        let limit = context.min(self.handle.kv_tokens);
        match limit.checked_sub(tokens) {
            None | Some(0) if tokens < context => Err(Error::KvTooSmall { tokens, limit }),
            None | Some(0) => Err(Error::ContextExceeded {
                tokens,
                limit: context,
            }),
            Some(room) => Ok(room),
        }
    }

    /// Checks what a request says, but for its prompt's text.
    pub(crate) fn check_request(&self, request: &GenerateRequest) -> Result<()> {
        let model = &self.handle.model;
        self.check_decoder()?;
        check(request, model.vocabulary())?;
        match &request.adapter {
            Some(adapter) if !model.has_adapter(adapter) => Err(Error::Invalid(
                "the adapter was loaded beside another model".into(),
            )),
            _ => Ok(()),
        }
    }

    /// Requests that are computed at once.
    pub(crate) fn max_sequences(&self) -> usize {
        self.handle.options.max_sequences
    }

    fn check_decoder(&self) -> Result<()> {
        match self.handle.model.kind() {
            ModelKind::Decoder => Ok(()),
            ModelKind::Encoder => Err(Error::Invalid(format!(
                "`{}` is an encoder: it embeds texts, and neither generates nor scores",
                self.handle.model.info().name
            ))),
        }
    }

    /// Refuses a text that has too many tokens however it is cut, before it costs the time to cut it.
    pub(crate) fn check_length(&self, bytes: usize) -> Result<()> {
        let least = bytes / self.handle.model.tokenizer().longest().max(1);
        self.room_after(least).map(|_| ())
    }

    pub(crate) fn text_tokens(&self, text: &str) -> Result<Vec<u32>> {
        self.check_length(text.len())?;
        let mut tokens: Vec<u32> = self.handle.model.tokenizer().first().into_iter().collect();
        tokens.extend(self.handle.model.encode(text, false));
        Ok(tokens)
    }

    /// Tokens that may follow these.
    pub(crate) fn room(&self, tokens: &[u32]) -> Result<usize> {
        match tokens.len() {
            0 => Err(Error::Invalid("the prompt is empty".into())),
            count => self.room_after(count),
        }
    }

    /// Queues work. The results for the first `used` tokens are not wanted.
    fn submit(&self, goal: Goal, tokens: Vec<u32>, used: usize, mut terms: Terms) -> Result<()> {
        let Handle {
            shared, options, ..
        } = &*self.handle;
        if terms.deadline.is_some_and(|at| at <= Instant::now()) {
            return Err(Error::DeadlineExceeded { generated: None });
        }
        let mut inbox = shared.lock();
        if inbox.stopped {
            return Err(Error::Stopped);
        }
        let most = options.max_sequences + options.queue;
        if inbox.inside >= most && !inbox.tenants.displace(&terms.tenant) {
            shared.counts.refused.fetch_add(1, Ordering::Relaxed);
            let waiting = options.queue;
            return Err(Error::QueueFull {
                waiting,
                retry_after: retry_after(shared.counts.next_place(), waiting),
            });
        }
        inbox.tenants.arrive(&terms.tenant);
        inbox.inside += 1;
        inbox.numbers += 1;
        let number = inbox.numbers;
        let prompt = tokens.len();
        if self.handle.model.kind() == ModelKind::Encoder {
            // Its keys depend on the tokens after them, too: a prefix is nobody else's.
            terms.namespace = Namespace {
                salt: number,
                adapter: u64::MAX,
            };
        }
        inbox.arrived.push(Sequence {
            goal,
            terms,
            number,
            tokens,
            prompt,
            computed: 0,
            used,
            table: Vec::new(),
            shared: 0,
            cached: 0,
            charged: None,
            planned: 0,
            arrived: Instant::now(),
            started: None,
        });
        shared.wake.notify_all();
        Ok(())
    }
}

/// Bytes of a message that become tokens.
pub(crate) fn length(message: &ChatMessage) -> usize {
    let calls = message.tool_calls.iter();
    message.content.len()
        + message.role.len()
        + calls.map(|call| call.arguments.len()).sum::<usize>()
}

/// What the engine replied, or that it is gone.
pub(crate) async fn answer<T>(receiver: oneshot::Receiver<Result<T>>) -> Result<T> {
    receiver.await.map_err(|_| Error::Stopped)?
}

/// Checks what does not depend on the prompt.
fn check(request: &GenerateRequest, vocabulary: usize) -> Result<()> {
    for (name, strings) in [("stop", &request.stop), ("ban", &request.ban)] {
        if strings.len() > MOST_STRINGS
            || strings
                .iter()
                .any(|s| s.is_empty() || s.len() > LONGEST_STRING)
        {
            let limits = format!("at most {MOST_STRINGS} strings of 1 to {LONGEST_STRING} bytes");
            return Err(Error::Invalid(format!("{name} must be {limits}")));
        }
    }
    check_top(request.logprobs.unwrap_or(0))?;
    if request.max_tokens == Some(0) {
        return Err(Error::Invalid("max_tokens must be at least 1".into()));
    }
    match &request.prompt {
        Prompt::Tokens(tokens) => check_ids(tokens, vocabulary),
        _ => Ok(()),
    }
}

pub(crate) fn check_top(top: u8) -> Result<()> {
    if top > MOST_LOGPROBS {
        return Err(Error::Invalid(format!(
            "logprobs must be at most {MOST_LOGPROBS}"
        )));
    }
    Ok(())
}

fn check_ids(tokens: &[u32], vocabulary: usize) -> Result<()> {
    match tokens.iter().find(|id| **id as usize >= vocabulary) {
        Some(id) => Err(Error::Invalid(format!(
            "the prompt's token {id} is beyond the vocabulary of {vocabulary}"
        ))),
        None => Ok(()),
    }
}

/// A request under way. Dropping it cancels the request within one token.
pub struct Generation {
    events: mpsc::UnboundedReceiver<Event>,
    ended: bool,
}

impl Generation {
    /// The next event; `None` after [`Event::Finished`] or [`Event::Failed`].
    pub async fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.recv().await;
        Some(self.note(event))
    }

    /// The next event, for callers without an asynchronous runtime.
    ///
    /// # Panics
    /// Within an asynchronous runtime, which it would block.
    pub fn next_blocking(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.blocking_recv();
        Some(self.note(event))
    }

    /// An engine that ends without a word failed.
    fn note(&mut self, event: Option<Event>) -> Event {
        let event = event.unwrap_or(Event::Failed(Error::Stopped));
        self.ended = matches!(event, Event::Finished(_) | Event::Failed(_));
        event
    }
}
