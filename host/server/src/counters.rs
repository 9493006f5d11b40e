//! The server's own numbers: answers by route and status.

use http::StatusCode;
use millgate_ops::Metrics;
use millgate_ops::metrics::Counter;

/// What a request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Chat,
    Completions,
    Embeddings,
    Responses,
    Models,
    Traces,
    Explain,
    Inputs,
    Metrics,
    Health,
    Other,
}

const ROUTES: [(Route, &str); 11] = [
    (Route::Chat, "chat"),
    (Route::Completions, "completions"),
    (Route::Embeddings, "embeddings"),
    (Route::Responses, "responses"),
    (Route::Models, "models"),
    (Route::Traces, "traces"),
    (Route::Explain, "explain"),
    (Route::Inputs, "inputs"),
    (Route::Metrics, "metrics"),
    (Route::Health, "health"),
    (Route::Other, "other"),
];
const CLASSES: [&str; 3] = ["2xx", "4xx", "5xx"];

/// A counter for each route and class of status, made once.
pub(crate) struct Counters(Vec<Counter>);

impl Counters {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let each = ROUTES
            .iter()
            .flat_map(|(_, route)| CLASSES.iter().map(move |class| (*route, *class)));
        let counter = |(route, class)| {
            metrics.counter(
                "millgate_http_responses_total",
                "Answers by route and class of status.",
                &[("route", route), ("status", class)],
            )
        };
        Self(each.map(counter).collect())
    }

    pub(crate) fn count(&self, route: Route, status: StatusCode) {
        let class = match status.as_u16() {
            ..400 => 0,
            400..500 => 1,
            _ => 2,
        };
        let row = ROUTES.iter().position(|(known, _)| *known == route);
        let place = row.unwrap_or(ROUTES.len() - 1) * CLASSES.len() + class;
        if let Some(counter) = self.0.get(place) {
            counter.add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_route_and_class() {
        let metrics = Metrics::new();
        let counters = Counters::new(&metrics);
        counters.count(Route::Chat, StatusCode::OK);
        counters.count(Route::Other, StatusCode::NOT_FOUND);
        counters.count(Route::Other, StatusCode::METHOD_NOT_ALLOWED);
        let text = metrics.render();
        for line in [
            "millgate_http_responses_total{route=\"chat\",status=\"2xx\"} 1",
            "millgate_http_responses_total{route=\"other\",status=\"4xx\"} 2",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
