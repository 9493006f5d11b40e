//! The command line: every command and option, with its help.

use std::net::SocketAddr;
use std::path::PathBuf;

use millgate_infer::DeviceChoice;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// An LLM operations platform in one binary: it serves models through pipelines of sandboxed
/// stages, over an API that OpenAI's clients speak.
#[derive(Debug, Parser)]
#[command(name = "millgate", version, propagate_version = true)]
#[command(after_help = "New here? Run: millgate quickstart")]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pulls the default model, serves it with a pipeline of all five kinds of stage
    Quickstart(QuickstartArgs),
    /// Serves the pipelines of a config file
    Serve(ServeArgs),
    /// Checks a config file and prints every error with its line
    Check(CheckArgs),
    #[command(flatten)]
    Operate(crate::operate::OperateCommand),
    /// A conversation in the terminal; shows what each stage did
    Chat(ChatArgs),
    /// Says which words of a prompt an answer hangs on, and what else could have been said
    Explain(ExplainArgs),
    /// The records of past requests
    #[command(subcommand)]
    Traces(TracesCommand),
    /// Runs the stages of past requests again and says whether they decide the same
    Replay(ReplayArgs),
    /// Runs the stages of another config over past requests and says what would change
    Backtest(BacktestArgs),
    /// Looks at plugins, runs them, publishes them, pulls them, keeps them up to date
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Keys that plugins are signed with
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Everything that a config needs in one folder or file, for machines without a network
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Gets models by name
    #[command(subcommand)]
    Model(ModelCommand),
    /// Measures stages, the gateway and models on this machine
    #[command(subcommand)]
    Bench(BenchCommand),
    /// The tamper-evident log
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Looks at the machine and the installation, and says what is missing
    Doctor(DoctorArgs),
}

/// Where data is kept.
#[derive(Clone, Debug, ClapArgs)]
pub struct DataArgs {
    /// The data folder: models, traces, audit log, compiled plugins
    #[arg(long, env = "MILLGATE_DATA", value_name = "DIR", help_heading = "Data")]
    pub data: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct QuickstartArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Use this GGUF file in place of the default model
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// The address to serve on; when the port is taken, the next free one is used
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Print the config that quickstart uses, and end
    #[arg(long)]
    pub print_config: bool,
    #[command(flatten)]
    pub process: ProcessArgs,
}

#[derive(Debug, ClapArgs)]
pub struct ServeArgs {
    /// The config file
    #[arg(
        long,
        short,
        default_value = "millgate.toml",
        env = "MILLGATE_CONFIG",
        value_name = "FILE"
    )]
    pub config: PathBuf,
    #[command(flatten)]
    pub data: DataArgs,
    /// Use this GGUF file for the model that the config names, in place of the config's source
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Listen here in place of the config's `server.listen`; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Use nothing but what stands in the lock (millgate.lock), and ask no registry
    #[arg(long)]
    pub locked: bool,
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// How the server's process runs.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Process")]
pub struct ProcessArgs {
    /// Threads that serve the network and run stages [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What is logged, such as `info` or `millgate_ops=debug`
    #[arg(
        long,
        env = "MILLGATE_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    pub log: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, ClapArgs)]
pub struct CheckArgs {
    /// The config file
    #[arg(required_unless_present = "schema", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Print the JSON Schema of the config, for editors, and end
    #[arg(long)]
    pub schema: bool,
    #[command(flatten)]
    pub data: DataArgs,
}

#[derive(Debug, ClapArgs)]
pub struct ChatArgs {
    /// Talk to a running server at this base URL; without it, pipelines run in this process
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "model_file"])]
    pub server: Option<String>,
    /// The API key for the server
    #[arg(
        long,
        env = "MILLGATE_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub key: Option<String>,
    /// The config file for a conversation in this process [default: quickstart's]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The name of the model to ask for [default: the first that is served]
    #[arg(long, short, value_name = "NAME")]
    pub model: Option<String>,
    /// Use this GGUF file for the config's model
    #[arg(long, value_name = "FILE")]
    pub model_file: Option<PathBuf>,
    /// The system message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// The most tokens of an answer
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub max_tokens: u32,
    /// 0 always takes the likeliest token
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// Ask this one thing and end
    #[arg(value_name = "TEXT")]
    pub text: Vec<String>,
    #[command(flatten)]
    pub data: DataArgs,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  millgate explain 'What is the capital of France?'
  millgate explain --plain 'The capital of France is' --answer ' Paris'
  millgate explain --unit token --token 3 'Name a colour.'
  millgate explain --server http://127.0.0.1:8080 --trace ID

Each part of the prompt is left out in turn, and the answer is scored again without it.")]
pub struct ExplainArgs {
    /// Ask a running server at this base URL; without it, the model runs in this process
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "model_file"])]
    pub server: Option<String>,
    /// The operator's key for the server
    #[arg(
        long,
        env = "MILLGATE_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub key: Option<String>,
    /// The config file for a model in this process [default: quickstart's]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The name of the model [default: the first that is served]
    #[arg(long, short, value_name = "NAME")]
    pub model: Option<String>,
    /// Use this GGUF file for the config's model
    #[arg(long, value_name = "FILE")]
    pub model_file: Option<PathBuf>,
    /// Explain the answer of this past request of the server; its texts must have been kept
    #[arg(long, value_name = "ID", requires = "server", conflicts_with_all = ["text", "system", "answer", "plain", "model", "max_tokens"])]
    pub trace: Option<String>,
    /// The system message
    #[arg(long, value_name = "TEXT", conflicts_with = "plain")]
    pub system: Option<String>,
    /// Continue the text as it is, and not as a message of a conversation
    #[arg(long)]
    pub plain: bool,
    /// Explain this answer [default: what the model says, always the likeliest token]
    #[arg(long, value_name = "TEXT")]
    pub answer: Option<String>,
    /// The most tokens of an answer that the model gives, up to 64
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub max_tokens: Option<u32>,
    /// Explain this token of the answer, counted from 0; may be given several times [default: all]
    #[arg(long, value_name = "N")]
    pub token: Vec<usize>,
    /// What of the prompt is left out at a time
    #[arg(long, value_enum, default_value_t = UnitName::Word)]
    pub unit: UnitName,
    /// How many alternatives are shown for each token, up to 20
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=20))]
    pub top: u8,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The prompt
    #[arg(value_name = "TEXT", required_unless_present = "trace")]
    pub text: Vec<String>,
    #[command(flatten)]
    pub data: DataArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum UnitName {
    Token,
    Word,
    Sentence,
}

#[derive(Debug, Subcommand)]
pub enum TracesCommand {
    /// The latest traces, newest first
    List(TracesListArgs),
    /// One trace: what each stage was given, its verdict and its time
    Show(TracesShowArgs),
    /// Erases what is kept of a tenant's requests for replays, or of one end user's
    EraseInputs(TracesEraseArgs),
}

/// Where traces are read from.
#[derive(Debug, ClapArgs)]
pub struct TracesSource {
    /// The running server; its data folder is read directly when it is not running
    #[arg(
        long,
        default_value = "http://127.0.0.1:8080",
        env = "MILLGATE_SERVER",
        value_name = "URL"
    )]
    pub server: String,
    /// The API key for the server
    #[arg(
        long,
        env = "MILLGATE_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub key: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub data: DataArgs,
}

#[derive(Debug, ClapArgs)]
pub struct TracesListArgs {
    /// The most traces to print
    #[arg(long, short = 'n', default_value_t = 20, value_name = "N")]
    pub limit: usize,
    /// Only this model
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Only those in which this stage ran (with --verdict: had that verdict)
    #[arg(long, value_name = "NAME")]
    pub stage: Option<String>,
    /// Only those with this verdict of a stage: pass, edit, block, …
    #[arg(long, value_name = "VERDICT")]
    pub verdict: Option<String>,
    /// Only those that ended so: stop, length, blocked, rejected, cancelled, error, …
    #[arg(long, value_name = "END")]
    pub finish: Option<String>,
    #[command(flatten)]
    pub source: TracesSource,
}

#[derive(Debug, ClapArgs)]
pub struct TracesShowArgs {
    /// The trace's id, as in the answer's `x-millgate-trace` header
    pub id: String,
    #[command(flatten)]
    pub source: TracesSource,
}

#[derive(Debug, ClapArgs)]
pub struct TracesEraseArgs {
    /// Whose requests; `default` where the config names no tenants
    #[arg(long, value_name = "NAME")]
    pub tenant: String,
    /// Only those of this end user: the `safety_identifier` or the `user` of the requests
    #[arg(long, value_name = "ID")]
    pub user: Option<String>,
    #[command(flatten)]
    pub source: TracesSource,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  millgate replay 019a5c21f0aa2b4c88e1d9036f1c7a5d
  millgate replay --all --since 24h --order random

Requests whose inputs are kept (`traces.inputs = \"on\"`) can be replayed. Exit codes: 0, every call gave the same bytes;
1, some gave others; 2, some could not be made again.")]
pub struct ReplayArgs {
    /// Traces by their ids
    #[arg(value_name = "TRACE", required_unless_present = "all")]
    pub traces: Vec<String>,
    /// All traces whose inputs are kept
    #[arg(long, conflicts_with = "traces")]
    pub all: bool,
    /// Only those that arrived in the last `30m`, `24h`, `7d`
    #[arg(long, value_name = "TIME", requires = "all")]
    pub since: Option<String>,
    /// At most this many, the newest
    #[arg(long, value_name = "N", requires = "all")]
    pub limit: Option<usize>,
    /// In which order they are replayed
    #[arg(long, value_enum, default_value_t = OrderName::Newest)]
    pub order: OrderName,
    #[command(flatten)]
    pub source: TracesSource,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OrderName {
    /// The newest first
    Newest,
    /// The oldest first
    Oldest,
    /// By chance
    Random,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  millgate backtest --config new.toml --since 7d
  millgate backtest --config new.toml --html report.html --show-text

The stages of the candidate run over requests whose inputs were kept (`traces.inputs = \"on\"`), and over the answers
that were given then. No model is asked.")]
pub struct BacktestArgs {
    /// The candidate's config file
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,
    /// Requests that arrived in the last `30m`, `24h`, `7d` [default: all that are kept]
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// At most this many requests, the newest
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Threads that run stages [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Examples of each kind of change
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub examples: usize,
    /// Show the texts of the examples; without it only their sizes
    #[arg(long)]
    pub show_text: bool,
    /// Also write a report with charts, one HTML file that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Use nothing but what stands in the lock beside the config, and ask no registry
    #[arg(long)]
    pub locked: bool,
    #[command(flatten)]
    pub source: TracesSource,
}

#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// Prints a plugin's manifest, interfaces, imports and digest
    Inspect(PluginInspectArgs),
    /// Runs a plugin once and prints its verdict
    Run(PluginRunArgs),
    /// Publishes a plugin to a registry and signs it
    Publish(PluginPublishArgs),
    /// Gets a plugin from a registry and checks who signed it
    Pull(PluginPullArgs),
    /// Writes what the config uses into its lock, at the versions that the config says
    Lock(PluginLockArgs),
    /// Moves plugins to their newest versions; shows what they newly ask for before it writes
    Update(PluginUpdateArgs),
    #[command(flatten)]
    Author(crate::author::AuthorCommand),
}

/// Whose `[registry]` and `[[trust]]` count.
#[derive(Debug, ClapArgs)]
pub struct ConfigArgs {
    /// The config file [default: millgate.toml, if it is there]
    #[arg(long, short, env = "MILLGATE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub data: DataArgs,
}

#[derive(Debug, ClapArgs)]
pub struct PluginInspectArgs {
    /// A first-party plugin's name, a .wasm file, a folder with one, or a registry reference such as
    /// registry.example/team/name:1.2.0 [default: list the first-party ones]
    pub plugin: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub place: ConfigArgs,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  millgate keys new acme
  millgate plugin publish pii.wasm registry.example/acme/pii:1.2.0 --key acme

Logins are those of `docker login`.")]
pub struct PluginPublishArgs {
    /// The .wasm file, a folder with one, or a first-party plugin's name
    pub file: String,
    /// Where to: registry.example/team/name:1.2.0, with the plugin's own version as the tag
    pub reference: String,
    /// The key to sign with: a name of `millgate keys list`, or a PEM file (with a slash)
    #[arg(long, value_name = "NAME", required_unless_present = "unsigned")]
    pub key: Option<String>,
    /// Publish without a signature; it can be signed later by publishing it again
    #[arg(long, conflicts_with = "key")]
    pub unsigned: bool,
    /// Replace other content under a tag that is taken
    #[arg(long)]
    pub overwrite: bool,
    /// The licence that the registry shows (SPDX) [default: the manifest's]
    #[arg(long, value_name = "SPDX")]
    pub licenses: Option<String>,
    /// Where the sources are, for the registry to show
    #[arg(long, value_name = "URL")]
    pub source: Option<String>,
    #[command(flatten)]
    pub place: ConfigArgs,
}

#[derive(Debug, ClapArgs)]
pub struct PluginPullArgs {
    /// registry.example/team/name:1.2.0, or pinned by @sha256:…
    pub reference: String,
    /// Trust this public key (a PEM file) in place of the config's [[trust]]
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Also write the component to this file
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub place: ConfigArgs,
}

#[derive(Debug, ClapArgs)]
pub struct PluginLockArgs {
    /// Only this plugin: its name, its stage's, or its reference [default: everything]
    pub name: Option<String>,
    #[command(flatten)]
    pub consent: ConsentArgs,
    #[command(flatten)]
    pub place: ConfigArgs,
}

#[derive(Debug, ClapArgs)]
pub struct PluginUpdateArgs {
    /// Only this plugin: its name, its stage's, or its reference [default: everything]
    pub name: Option<String>,
    /// Move to this version in place of the newest
    #[arg(long, value_name = "VERSION", requires = "name")]
    pub to: Option<String>,
    #[command(flatten)]
    pub consent: ConsentArgs,
    #[command(flatten)]
    pub place: ConfigArgs,
}

/// What an operator says yes to.
#[derive(Debug, ClapArgs)]
pub struct ConsentArgs {
    /// Do not ask; for scripts
    #[arg(long, short)]
    pub yes: bool,
    /// Allow an older version than the one that is locked, or the same one with other bytes
    #[arg(long)]
    pub allow_downgrade: bool,
}

#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Makes an Ed25519 key pair in the data folder
    New(KeysNewArgs),
    /// The keys of the data folder
    List(KeysListArgs),
}

#[derive(Debug, ClapArgs)]
pub struct KeysNewArgs {
    /// What to call it
    pub name: String,
    #[command(flatten)]
    pub data: DataArgs,
}

#[derive(Debug, ClapArgs)]
pub struct KeysListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub data: DataArgs,
}

#[derive(Debug, Subcommand)]
pub enum BundleCommand {
    /// Writes everything that a config needs: plugins, signatures, lock, models
    Create(BundleCreateArgs),
    /// Takes a bundle onto this machine, ready to be served
    Load(BundleLoadArgs),
}

#[derive(Debug, ClapArgs)]
pub struct BundleCreateArgs {
    /// What to write: one file if its name ends in .tar, a folder otherwise
    pub path: PathBuf,
    #[command(flatten)]
    pub place: ConfigArgs,
}

#[derive(Debug, ClapArgs)]
pub struct BundleLoadArgs {
    /// The bundle
    pub path: PathBuf,
    /// Where config, lock and models go
    #[arg(default_value = ".", value_name = "DIR")]
    pub folder: PathBuf,
    /// Trust the signers that the bundle's config names, without asking
    #[arg(long)]
    pub trust: bool,
    /// Replace the config that is there; the signers that it trusts stay
    #[arg(long)]
    pub overwrite: bool,
    #[command(flatten)]
    pub data: DataArgs,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  millgate plugin run pii 'write to ann@example.com'
  millgate plugin run pii --config '{\"action\":\"block\"}' < letter.txt
  millgate plugin run schema '{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}'
  millgate plugin run overlap --reference 'The cat sat.' 'The cat sat down.'
  printf 'ann\nbob\n' | millgate plugin run canary

validation takes a request or a row as JSON, or any text; deployment a user a line; monitoring an
event a line as JSON. Ends with 2 when the stage blocks or rejects.")]
pub struct PluginRunArgs {
    /// A first-party plugin's name, or a .wasm file
    pub plugin: String,
    /// The text [default: --file, else standard input]
    pub text: Vec<String>,
    /// Read the text from this file
    #[arg(long, short, value_name = "FILE", conflicts_with = "text")]
    pub file: Option<PathBuf>,
    /// Which of the plugin's interfaces to call [default: its first]
    #[arg(long, short, value_enum)]
    pub interface: Option<InterfaceName>,
    /// The stage's config as JSON
    #[arg(long, short, default_value = "{}", value_name = "JSON")]
    pub config: String,
    /// compliance: break the text into chunks of so many characters, as a stream would
    #[arg(long, value_name = "N")]
    pub chunk: Option<usize>,
    /// evaluation: the right answer; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub reference: Vec<String>,
    /// evaluation: what the model was asked
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub input: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum InterfaceName {
    Validation,
    Compliance,
    Monitoring,
    Deployment,
    Evaluation,
}

#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Downloads a model, checks its SHA-256 and keeps it in the data folder
    Pull(ModelPullArgs),
    /// The models that can be pulled, and which of them are here
    List(ModelListArgs),
}

#[derive(Debug, ClapArgs)]
pub struct ModelPullArgs {
    /// The model's name, as `millgate model list` prints it
    #[arg(default_value = "smollm2-135m-instruct")]
    pub name: String,
    #[command(flatten)]
    pub data: DataArgs,
}

#[derive(Debug, ClapArgs)]
pub struct ModelListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub data: DataArgs,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// One stage: a fresh sandbox a call, a reused one, and the same code compiled natively
    Stage(BenchStageArgs),
    /// The real server under load, before an upstream with a fixed answer
    Gateway(BenchGatewayArgs),
    /// A model: prompts and answers per second, and what the machine allows
    Model(BenchModelArgs),
}

#[derive(Debug, ClapArgs)]
pub struct BenchStageArgs {
    /// The plugin: a first-party one's name, or a .wasm file
    #[arg(long, default_value = "pii")]
    pub plugin: String,
    /// Bytes of text a call
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub bytes: usize,
    /// The stage's config as JSON
    #[arg(long, short, default_value = "{}", value_name = "JSON")]
    pub config: String,
    /// Seconds for each comparison
    #[arg(long, default_value_t = 2.0, value_name = "S")]
    pub seconds: f64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct BenchGatewayArgs {
    /// Connections at once, one row each
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64], value_name = "N,…")]
    pub connections: Vec<usize>,
    /// Compliance stages before the model, one row each
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1, 5], value_name = "N,…")]
    pub stages: Vec<usize>,
    /// Bytes of text in a request
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub bytes: usize,
    /// Seconds a row
    #[arg(long, default_value_t = 3.0, value_name = "S")]
    pub seconds: f64,
    /// Half a second a row, 16 connections only
    #[arg(long)]
    pub quick: bool,
    /// The core that server, client and upstream share
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub core: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct BenchModelArgs {
    /// A GGUF file, or the name of a model that was pulled
    #[arg(default_value = "smollm2-135m-instruct")]
    pub model: String,
    /// Threads that compute; 0 takes one for each physical core
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub threads: usize,
    /// The device: cpu, cuda:0, or auto (the first GPU that can be used); the limits are always the processor's
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: DeviceChoice,
    /// One short run for each figure, in place of the median of five
    #[arg(long)]
    pub quick: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub data: DataArgs,
}

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Verifies the hash chain and the signed head
    Verify(AuditVerifyArgs),
}

#[derive(Debug, ClapArgs)]
pub struct AuditVerifyArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub data: DataArgs,
}

#[derive(Debug, ClapArgs)]
pub struct DoctorArgs {
    /// The address that would be served on
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    #[command(flatten)]
    pub data: DataArgs,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Args::command().debug_assert();
    }
}
