//! `millgate bench gateway`: the real server as a child process under load, before an upstream
//! with a fixed answer, all on one core.
//!
//! Without streaming the stages stand on the request; with streaming they stand on the answer and
//! see each of its chunks. Each request leaves a durable trace. CPU time is that of server, client
//! and upstream together, as the goal is stated; the server's share stands beside it.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::load::{self, Load};
use super::{text, upstream};
use crate::args::BenchGatewayArgs;
use crate::{folders, system, words};

/// One row of the JSON output.
#[derive(Debug, Serialize)]
struct Row {
    stages: usize,
    stream: bool,
    connections: usize,
    rps: f64,
    cpu_ms_per_request: f64,
    added_p50_ms: f64,
    added_p99_ms: f64,
    rss_mib: f64,
    /// The server's part of the CPU time.
    server_cpu_ms: f64,
}

pub fn run(args: BenchGatewayArgs) -> Result<ExitCode> {
    let (connections, seconds) = if args.quick {
        (vec![16], 0.5)
    } else {
        (args.connections.clone(), args.seconds)
    };
    if !(0.05..=600.0).contains(&seconds) || connections.contains(&0) {
        bail!("--seconds must be from 0.05 to 600 and --connections at least 1");
    }
    let time = Duration::from_secs_f64(seconds);
    system::pin_to(args.core)?;
    let upstream = upstream::start()?;
    // Beside the real data: a trace is durable only on a real disk.
    let base = folders::default_data();
    std::fs::create_dir_all(&base)?;
    let folder = tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(&base)?;
    let prompt = text::english(args.bytes);
    let mut rows = Vec::new();
    for stream in [false, true] {
        let request = load::request("fixed", &prompt, stream);
        let mut direct = Vec::new();
        for &count in &connections {
            direct.push(load::run(upstream, &request, count, time, || Ok(()))?);
        }
        for &stages in &args.stages {
            let server = Server::start(folder.path(), upstream, stages, stream)?;
            for (&count, direct) in connections.iter().zip(&direct) {
                let row = measure(&server, &request, count, time, direct, (stages, stream))?;
                if !args.json {
                    eprint!(".");
                }
                rows.push(row);
            }
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        eprintln!();
        print!("{}", describe(&rows, &args, seconds));
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(
    server: &Server,
    request: &[u8],
    connections: usize,
    time: Duration,
    direct: &Load,
    (stages, stream): (usize, bool),
) -> Result<Row> {
    let (own, other) = (std::process::id(), server.child.id());
    let mut marks = Vec::new();
    let load = load::run(server.address, request, connections, time, || {
        marks.push((system::cpu_time(own)?, system::cpu_time(other)?));
        Ok(())
    })
    .context("the load on the server failed")?;
    let [(own_begin, begin), (own_end, end)] = marks.as_slice() else {
        bail!("the load was not measured");
    };
    if load.answers == 0 {
        bail!(
            "no answer came in {} s; give it more with --seconds",
            time.as_secs_f64()
        );
    }
    let per_request = |used: Duration| used.as_secs_f64() * 1e3 / load.answers as f64;
    let server_cpu_ms = per_request(end.saturating_sub(*begin));
    Ok(Row {
        stages,
        stream,
        connections,
        rps: round(load.rate(), 1),
        cpu_ms_per_request: round(
            server_cpu_ms + per_request(own_end.saturating_sub(*own_begin)),
            4,
        ),
        added_p50_ms: round(load.quantile_ms(0.5) - direct.quantile_ms(0.5), 3),
        added_p99_ms: round(load.quantile_ms(0.99) - direct.quantile_ms(0.99), 3),
        rss_mib: round(system::resident_mib(other)?, 1),
        server_cpu_ms: round(server_cpu_ms, 4),
    })
}

/// Digits that are noise are not printed.
fn round(value: f64, digits: i32) -> f64 {
    let factor = 10f64.powi(digits);
    (value * factor).round() / factor
}

fn describe(rows: &[Row], args: &BenchGatewayArgs, seconds: f64) -> String {
    let heads = [
        "stages",
        "stream",
        "connections",
        "req/s",
        "CPU ms",
        "of it server",
        "added p50 ms",
        "added p99 ms",
        "RSS MiB",
    ];
    let mut cells = vec![heads.map(str::to_owned).to_vec()];
    for row in rows {
        cells.push(vec![
            row.stages.to_string(),
            if row.stream { "yes" } else { "no" }.to_owned(),
            row.connections.to_string(),
            format!("{:.0}", row.rps),
            format!("{:.4}", row.cpu_ms_per_request),
            format!("{:.4}", row.server_cpu_ms),
            format!("{:.3}", row.added_p50_ms),
            format!("{:.3}", row.added_p99_ms),
            format!("{:.1}", row.rss_mib),
        ]);
    }
    let mut text = format!(
        "server, client and upstream on core {}; {} bytes of text; {seconds} s a row; CPU of all three\n{}",
        args.core,
        args.bytes,
        words::table(&cells)
    );
    for connections in rows
        .iter()
        .map(|row| row.connections)
        .collect::<std::collections::BTreeSet<_>>()
    {
        let of = |stages: usize| {
            let mut found = rows
                .iter()
                .filter(|row| row.stream && row.connections == connections);
            found
                .find(|row| row.stages == stages)
                .map(|row| row.cpu_ms_per_request)
        };
        if let (Some(none), Some(five)) = (of(0), of(5)) {
            let micros = (five - none) * 1e3 / (5 * upstream::CHUNKS) as f64;
            let _ = writeln!(
                text,
                "streaming, {connections} connections: {micros:.2} µs CPU for each chunk and stage ({} chunks, 5 stages)",
                upstream::CHUNKS
            );
        }
    }
    text
}

/// The server under load. Dropping it stops it.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts it with so many stages and waits until it is ready.
    fn start(folder: &Path, upstream: SocketAddr, stages: usize, stream: bool) -> Result<Self> {
        let config = folder.join(format!("{stages}-{stream}.toml"));
        std::fs::write(&config, config_of(upstream, stages, stream))?;
        let mut child = Command::new(std::env::current_exe()?)
            .args([
                "serve",
                "--workers",
                "1",
                "--log",
                "warn",
                "--listen",
                "127.0.0.1:0",
            ])
            .arg("--config")
            .arg(&config)
            .arg("--data")
            .arg(folder.join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the server")?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let mut address = None;
        for line in &mut lines {
            let line = line?;
            if let Some((_, rest)) = line.split_once("listening on http://") {
                address = Some(rest.trim().parse().context("the server named no address")?);
            }
            if line.contains("ready in") {
                break;
            }
        }
        // Reads on, so that the server never waits for us; ends with the child.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        match address {
            Some(address) if child.try_wait()?.is_none() => Ok(Self { child, address }),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                bail!("the server did not start; its message is above");
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        system::terminate(self.child.id());
        let _ = self.child.wait();
    }
}

fn config_of(upstream: SocketAddr, stages: usize, stream: bool) -> String {
    let mut text = format!(
        "[server]\ndrain = \"1s\"\n[models.fixed]\nupstream = {{ url = \"http://{upstream}/v1\" }}\n"
    );
    let names: Vec<String> = (1..=stages)
        .map(|place| format!("\"pii-{place}\""))
        .collect();
    for name in &names {
        let _ = writeln!(
            text,
            "[stages.{name}]\nplugin = \"pii\"\nconfig = {{ action = \"mask\" }}"
        );
    }
    let list = names.join(", ");
    let place = if stream { "output" } else { "input" };
    let _ = writeln!(
        text,
        "[pipelines.bench]\nserves = [\"fixed\"]\n{place} = [{list}]\narms = [{{ name = \"stable\", model = \"fixed\" }}]"
    );
    text
}
