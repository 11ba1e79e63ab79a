//! Generation over HTTP: requests of many clients, which share the passes of one or several models.
//!
//! Connections have a thread of their own ([`connections`]). The models stay in the thread that loaded them, which takes
//! jobs from a queue (`queue`); all models share its threads of libtorch. `router` has the routes, `openai` and
//! `trajectories` what is under `/v1`.

mod api_keys;
mod authorize;
pub mod connections;
mod entry;
mod events;
mod fields;
mod generate;
mod infill;
mod metrics;
mod openai;
mod options;
mod order;
mod page;
mod pages;
mod queue;
mod refusal;
mod router;
mod served_model;
mod service;
mod text_events;
mod tls;
mod trajectories;
mod whole_batches;
mod wish;

use std::net::TcpListener;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use tokio::sync::mpsc::UnboundedReceiver;

pub use self::api_keys::ApiKeys;
pub use self::connections::Signals;
pub use self::events::{RequestRecord, ServeEvent, ServeWatch};
pub use self::options::{Access, Limits, ServeOptions};
pub use self::tls::Tls;

use self::metrics::Metrics;
use self::order::{Entrance, Job, Models, Order, Shown};
use self::served_model::ServedModel;
use self::service::Service;
use crate::error::fail;
use crate::model::loaded::Method;
use crate::text::generated::{GeneratedText, Generation};
use crate::text::text_engine::{EngineStep, EngineWatch, TextEngine, TextId};
use crate::text::text_loop::Frames;
use crate::{Error, GenerateOptions, Model, Result, Sampling, TextRequest};

/// A model to serve: its name for clients, and the setting of requests that change nothing.
pub struct Serving<'a> {
    /// The name.
    pub name: String,
    /// The model.
    pub model: &'a Model,
    /// The setting.
    pub sampling: Sampling,
}

/// A server whose connections are open. It answers `/health`, and refuses other requests until
/// [`Server::with_models`] gives it models.
pub struct Server {
    options: ServeOptions,
    metrics: Arc<Metrics>,
    models: Arc<OnceLock<Vec<Arc<ServedModel>>>>,
    jobs: UnboundedReceiver<Job>,
    connections: JoinHandle<Result<()>>,
}

impl Server {
    /// Takes connections at `socket` (see [`connections::bind`]) until a signal stops it. `watch` hears of every request.
    ///
    /// # Errors
    /// If an option is invalid, or the system refuses a thread.
    pub fn start(
        socket: TcpListener,
        options: ServeOptions,
        access: Access,
        signals: Signals,
        watch: ServeWatch,
    ) -> Result<Self> {
        let (entrance, jobs) = Entrance::new(options.limits.waiting);
        let (metrics, models) = (Arc::<Metrics>::default(), Arc::<OnceLock<_>>::default());
        let service = Arc::new(Service {
            entrance,
            models: Arc::clone(&models),
            limits: options.limits,
            batch_size: options.batch_size,
            seed: options.seed,
            keys: access.keys,
            tls: access.tls,
            active: Arc::default(),
            metrics: Arc::clone(&metrics),
            watch,
        });
        let router = router::router(Arc::clone(&service), &access.origins)?;
        let serve = move || connections::serve(socket, &service, router, &signals);
        let connections = std::thread::Builder::new().name("connections".to_owned()).spawn(serve)?;
        Ok(Self { options, metrics, models, jobs, connections })
    }

    /// Lets requests in to these models.
    ///
    /// # Errors
    /// If a setting is invalid for its model, or two models have one name.
    pub fn with_models<'a>(self, serving: &'a [Serving<'a>]) -> Result<LoadedServer<'a>> {
        let mut models = Vec::new();
        for one in serving {
            if serving.iter().filter(|other| other.name == one.name).count() > 1 {
                fail!(setting("model"), "two models have the name {}: give each one of its own", one.name);
            }
            let model = ServedModel::new(&one.name, one.model, &one.sampling)?;
            let (each, most) = (model.method.candidates()?.count(), self.options.limits.texts);
            if each > most {
                fail!(
                    setting("max_texts"),
                    "{} generates {each} candidates per text, and a request can have {most} texts with their candidates \
                     (--max-texts): raise that, or lower the number of candidates",
                    one.name
                );
            }
            models.push(Arc::new(model));
        }
        let _ = self.models.set(models);
        Ok(LoadedServer { server: self, serving })
    }
}

/// A server that has models.
pub struct LoadedServer<'a> {
    server: Server,
    serving: &'a [Serving<'a>],
}

impl LoadedServer<'_> {
    /// Answers requests until a signal stops the server and all complete requests are answered.
    ///
    /// # Errors
    /// If the system refuses the socket.
    pub fn run(self) -> Result<()> {
        let Self { server: Server { options, metrics, jobs, connections, .. }, serving } = self;
        let engine = TextEngine::new(options.batch_size, options.one_shape);
        // Returns when the last connection has ended.
        queue::work(jobs, options.batch_size, &mut Loaded { options: &options, metrics: &metrics, serving, engine });
        connections.join().map_err(|_| Error::request("the thread of the connections has panicked"))?
    }
}

/// The models of a server, with its figures.
struct Loaded<'s, 'a> {
    options: &'s ServeOptions,
    metrics: &'s Metrics,
    serving: &'a [Serving<'a>],
    engine: TextEngine<'a>,
}

impl Loaded<'_, '_> {
    fn note_running(&self, others: usize) {
        self.metrics.running(self.engine.rows() + others);
    }
}

impl<'a> Models<'a> for Loaded<'_, 'a> {
    fn admit(&mut self, order: &Order, request: &TextRequest, watch: EngineWatch<'a>) -> Result<TextId> {
        let Method::Flow(sampling) = &order.method else {
            fail!(request, "texts of baselines are generated in whole batches");
        };
        let (model, generate) = (self.serving[order.model].model, generate_options(self.options, &order.shown));
        let id = self.engine.admit(model, request, sampling, &generate, watch);
        self.note_running(0);
        id
    }

    fn running(&self) -> usize {
        self.engine.rows()
    }

    fn step(&mut self) -> Vec<(TextId, Result<GeneratedText>)> {
        let EngineStep { finished, rows } = self.engine.step();
        if rows > 0 {
            self.metrics.pass(rows);
        }
        self.note_running(0);
        let text = |made: Generation| {
            // Each candidate is a batch of its own.
            self.metrics.made(made.cost.batches as usize, &made.cost);
            made.texts.into_iter().next().ok_or_else(Error::defect)
        };
        finished.into_iter().map(|(id, made)| (id, made.and_then(text))).collect()
    }

    fn cancel(&mut self, id: TextId) {
        self.engine.cancel(id);
        self.note_running(0);
    }

    fn write(&mut self, order: &Order, requests: &[TextRequest]) -> Result<Vec<GeneratedText>> {
        let generate = generate_options(self.options, &order.shown);
        self.metrics.pass(requests.len());
        self.note_running(requests.len());
        let ignore = &mut |_: crate::TextEvent<'_>| ControlFlow::Continue(());
        let made = self.serving[order.model].model.generate_by(requests, &order.method, &generate, ignore);
        self.note_running(0);
        let made = made?;
        self.metrics.made(requests.len(), &made.cost);
        Ok(made.texts)
    }
}

fn generate_options(options: &ServeOptions, shown: &Shown) -> GenerateOptions {
    let (trace, frames) = match shown {
        Shown::At(times) => (times.clone(), Frames::All),
        Shown::EveryStep => (Vec::new(), Frames::EveryStep),
    };
    GenerateOptions {
        batch_size: options.batch_size,
        one_shape: options.one_shape,
        grid_seed: options.seed,
        trace,
        frames,
        log_probs: true,
    }
}
