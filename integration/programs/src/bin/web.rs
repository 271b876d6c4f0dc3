//! The test images' web server: says which pod answered and where the request came from, can be made unhealthy,
//! unready, slow, hungry or dead by a request, echoes TCP and UDP, answers gRPC health, and ends on SIGTERM.
//! `web get URL` is a client for exec probes; `web crash [CODE] [MESSAGE]` fails at once; `web registry PORT BASIC`
//! serves this program as an image to who shows the credentials (base64 of `user:password`).

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, fs, thread};

use longshore_test_programs::grpc_health;
use longshore_test_programs::http::{self, Request, Response};
use longshore_test_programs::registry::Registry;
use nix::sys::signal::{SigSet, Signal};

const USAGE: &str = "usage: web [--port N] [--tcp N] [--udp N] [--grpc N] [--start-delay SECONDS] [--stop-delay SECONDS] [--unready]
       web get URL
       web crash [CODE] [MESSAGE]
       web registry PORT BASIC";

/// Files that make the server unhealthy or unready while they exist.
const UNHEALTHY: &str = "/tmp/unhealthy";
const UNREADY: &str = "/tmp/unready";

#[derive(Debug, Default)]
struct State {
    unhealthy: AtomicBool,
    unready: AtomicBool,
}

impl State {
    fn healthy(&self) -> bool {
        !self.unhealthy.load(Ordering::Relaxed) && !Path::new(UNHEALTHY).exists()
    }

    fn ready(&self) -> bool {
        !self.unready.load(Ordering::Relaxed) && !Path::new(UNREADY).exists()
    }
}

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("get") => get(args.get(1)),
        Some("crash") => crash(&args[1..]),
        Some("registry") => serve_images(&args[1..]),
        _ => serve(&args),
    }
}

fn usage(problem: &str) -> ! {
    eprintln!("web: {problem}\n{USAGE}");
    exit(2)
}

fn get(url: Option<&String>) {
    let Some(url) = url else { usage("get needs a URL") };
    match http::get(url, Duration::from_secs(5)) {
        Ok((status, body)) => {
            print!("{body}");
            exit(i32::from(!(200..400).contains(&status)));
        }
        Err(error) => {
            eprintln!("{url}: {error}");
            exit(1);
        }
    }
}

fn crash(args: &[String]) {
    let code = args.first().and_then(|c| c.parse().ok()).unwrap_or(1);
    let message = args.get(1).map_or("cannot reach the database at db.example:5432", String::as_str);
    eprintln!("fatal: {message}");
    // Without a termination log there is nobody to tell.
    let _ = fs::write("/dev/termination-log", message);
    exit(code);
}

fn serve_images(args: &[String]) {
    let (Some(port), Some(basic)) = (args.first().and_then(|port| port.parse().ok()), args.get(1)) else {
        usage("registry needs a port and credentials")
    };
    let program = fs::read("/proc/self/exe").expect("a program can be read while it runs");
    let registry = Arc::new(Registry::new(basic, &program));
    let answer = move |stream: TcpStream| {
        let request = http::read_request(&stream)?;
        let status = registry.answer(&stream, &request)?;
        println!("{} {} -> {status}", request.method, request.path);
        Ok(())
    };
    accept(bound(port), answer).join().expect("the accepting thread never ends");
}

#[derive(Debug)]
struct Options {
    port: u16,
    tcp: Option<u16>,
    udp: Option<u16>,
    grpc: Option<u16>,
    start_delay: Duration,
    stop_delay: Duration,
    unready: bool,
}

fn parse(args: &[String]) -> Options {
    let mut options = Options {
        port: 8080,
        tcp: None,
        udp: None,
        grpc: None,
        start_delay: Duration::ZERO,
        stop_delay: Duration::ZERO,
        unready: false,
    };
    let mut args = args.iter();
    while let Some(flag) = args.next() {
        if flag == "--unready" {
            options.unready = true;
            continue;
        }
        let Some(value) = args.next() else { usage(&format!("{flag} needs a value")) };
        let Ok(number) = value.parse::<u16>() else { usage(&format!("{flag} {value}: not a number")) };
        match flag.as_str() {
            "--port" => options.port = number,
            "--tcp" => options.tcp = Some(number),
            "--udp" => options.udp = Some(number),
            "--grpc" => options.grpc = Some(number),
            "--start-delay" => options.start_delay = Duration::from_secs(number.into()),
            "--stop-delay" => options.stop_delay = Duration::from_secs(number.into()),
            _ => usage(&format!("no such option {flag}")),
        }
    }
    options
}

fn serve(args: &[String]) {
    let options = parse(args);
    // Blocked before any thread starts, so that every thread inherits it and only the waiting one is told.
    let stop: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    stop.thread_block().expect("a signal set can be blocked");
    thread::spawn(move || {
        let signal = stop.wait().expect("a signal set can be waited for");
        println!("{signal}: stopping in {:?}", options.stop_delay);
        thread::sleep(options.stop_delay);
        println!("bye");
        exit(0);
    });
    thread::sleep(options.start_delay);
    let state = Arc::new(State { unready: AtomicBool::new(options.unready), ..State::default() });
    if let Some(port) = options.tcp {
        accept(bound(port), |stream| echo(&stream));
    }
    if let Some(port) = options.udp {
        thread::spawn(move || echo_datagrams(port));
    }
    if let Some(port) = options.grpc {
        let state = Arc::clone(&state);
        accept(bound(port), move |stream| grpc_health::serve(stream, || state.healthy()));
    }
    let listener = bound(options.port);
    println!("{} serves port {}", pod(), options.port);
    accept(listener, move |stream| answer(&stream, &state)).join().expect("the accepting thread never ends");
}

fn bound(port: u16) -> TcpListener {
    http::listen(port).unwrap_or_else(|error| {
        eprintln!("fatal: port {port}: {error}");
        exit(1)
    })
}

/// A thread per connection; a connection that breaks ends alone.
fn accept(
    listener: TcpListener,
    handle: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let handle = handle.clone();
            thread::spawn(move || drop(handle(stream)));
        }
    })
}

fn echo(mut stream: &TcpStream) -> io::Result<()> {
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            n => stream.write_all(&bytes[..n])?,
        }
    }
}

/// Answers each datagram with the pod's name and what was sent.
fn echo_datagrams(port: u16) {
    let socket = UdpSocket::bind(("::", port)).or_else(|_| UdpSocket::bind(("0.0.0.0", port)));
    let socket = socket.unwrap_or_else(|error| {
        eprintln!("fatal: udp port {port}: {error}");
        exit(1)
    });
    let mut bytes = [0; 2048];
    while let Ok((n, from)) = socket.recv_from(&mut bytes) {
        let mut answer = format!("pod={} ", pod()).into_bytes();
        answer.extend_from_slice(&bytes[..n]);
        // A client that has gone does not matter to the next one.
        let _ = socket.send_to(&answer, from);
    }
}

fn answer(stream: &TcpStream, state: &State) -> io::Result<()> {
    let request = http::read_request(stream)?;
    let response = respond(&request, state);
    println!("{} {} from {} -> {}", request.method, request.path, request.from, response.status);
    http::write_response(stream, &response)?;
    if request.path == "/exit" {
        exit(request.query.get("code").and_then(|c| c.parse().ok()).unwrap_or(1));
    }
    Ok(())
}

fn respond(request: &Request, state: &State) -> Response {
    let number = |key: &str| request.query.get(key).and_then(|v| v.parse::<u64>().ok());
    match request.path.as_str() {
        "/" => Response::ok(format!("pod={} from={}\n", pod(), request.from)),
        "/healthz" if state.healthy() => Response::ok("ok\n"),
        "/ready" if state.ready() => Response::ok("ready\n"),
        "/healthz" | "/ready" => Response::error(503, "not now\n"),
        "/toggle/healthz" => toggle(&state.unhealthy),
        "/toggle/ready" => toggle(&state.unready),
        "/slow" => {
            thread::sleep(Duration::from_millis(number("ms").unwrap_or(3000)));
            Response::ok("at last\n")
        }
        "/headers" => {
            Response::ok(request.headers.iter().map(|(k, v)| format!("{k}: {v}\n")).collect::<String>())
        }
        "/env" => Response::ok(env::vars().map(|(k, v)| format!("{k}={v}\n")).collect::<String>()),
        "/file" => file(request.query.get("path")),
        "/memory" => eat(number("mib").unwrap_or(64)),
        "/exit" => Response::ok("bye\n"),
        _ => Response::error(404, "no such page\n"),
    }
}

fn toggle(flag: &AtomicBool) -> Response {
    let was_off = flag.fetch_xor(true, Ordering::Relaxed);
    Response::ok(if was_off { "on\n" } else { "off\n" })
}

fn file(path: Option<&String>) -> Response {
    match path.map(fs::read_to_string) {
        Some(Ok(text)) => Response::ok(text),
        Some(Err(error)) => Response::error(404, format!("{error}\n")),
        None => Response::error(400, "path is missing\n"),
    }
}

/// Takes memory and keeps it: every page is written, as untouched pages cost nothing.
fn eat(mib: u64) -> Response {
    let bytes = vec![1_u8; (mib as usize) << 20];
    let sum: u64 = bytes.iter().step_by(4096).map(|b| u64::from(*b)).sum();
    std::mem::forget(bytes);
    Response::ok(format!("{sum} pages taken\n"))
}

/// The pod's name by the downward API, else the host name.
fn pod() -> String {
    env::var("POD_NAME").unwrap_or_else(|_| {
        nix::unistd::gethostname()
            .map_or_else(|_| "unknown".to_owned(), |name| name.to_string_lossy().into_owned())
    })
}
