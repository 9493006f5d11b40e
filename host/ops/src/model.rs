//! Who answers: the inference core in this process, or an endpoint that speaks the OpenAI API. The
//! executor sees only this.

use std::sync::Arc;

use futures::{future::BoxFuture, stream::BoxStream};
use millgate_infer as infer;

use crate::{config::SamplingConfig, error::ApiError, shelf::OnUse, upstream::Upstream};

/// A language model in this process. One implementation is the inference core's engine; tests
/// bring others.
pub trait LanguageModel: Send + Sync + 'static {
    /// Begins a text. Dropping the stream cancels it.
    ///
    /// # Errors
    /// At once: the queue is full, the prompt does not fit, a field is out of range.
    fn generate(
        &self,
        request: infer::GenerateRequest,
    ) -> infer::Result<BoxStream<'static, infer::Event>>;

    /// How likely each token of a text is, with the `top` likeliest tokens at its place.
    fn score(
        &self,
        text: String,
        top: u8,
        caller: infer::Caller,
    ) -> BoxFuture<'_, infer::Result<Vec<infer::TokenScore>>>;

    /// Which parts of a prompt an answer hangs on.
    fn explain(
        &self,
        _asked: infer::ExplainRequest,
    ) -> BoxFuture<'_, infer::Result<infer::Explanation>> {
        let error = infer::Error::Unsupported("it cannot explain its answers".to_owned());
        Box::pin(std::future::ready(Err(error)))
    }

    /// One vector for each text, of length 1, and the tokens that were read.
    fn embed(
        &self,
        texts: Vec<String>,
        caller: infer::Caller,
    ) -> BoxFuture<'_, infer::Result<(Vec<Vec<f32>>, u32)>>;

    /// One vector for each text that is token ids already, of length 1.
    fn embed_tokens(
        &self,
        texts: Vec<Vec<u32>>,
        caller: infer::Caller,
    ) -> BoxFuture<'_, infer::Result<Vec<Vec<f32>>>>;

    /// One of its adapters, by the name in the config.
    fn adapter(&self, _name: &str) -> Option<Arc<infer::Adapter>> {
        None
    }

    /// How it samples where a request does not say.
    fn sampling(&self) -> SamplingConfig {
        SamplingConfig::default()
    }
}

/// Who answers.
#[derive(Clone)]
pub(crate) enum Backend {
    Local(Arc<dyn LanguageModel>),
    /// Loaded when it is asked for.
    OnUse(Arc<OnUse>),
    Upstream(Arc<Upstream>),
}

/// Who answers, loaded.
pub(crate) enum Ready {
    Local(Arc<dyn LanguageModel>),
    Upstream(Arc<Upstream>),
}

impl Backend {
    /// Loads what has to be loaded. A local model stays loaded as long as the answer is held.
    ///
    /// # Errors
    /// 503: the model cannot be read, or finds no room.
    pub(crate) async fn ready(self) -> Result<Ready, ApiError> {
        Ok(match self {
            Self::Local(model) => Ready::Local(model),
            Self::OnUse(model) => Ready::Local(model.lease().await?),
            Self::Upstream(upstream) => Ready::Upstream(upstream),
        })
    }
}
