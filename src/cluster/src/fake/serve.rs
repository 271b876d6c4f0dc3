//! HTTP/2 of the fake server: calls to objects, watches as bodies that go on.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::objects::{Address, Refusal, query};
use super::{FakeApi, Fault};

/// A body whose frames come in by and by.
pub(super) struct Flow(mpsc::Receiver<Bytes>);

impl Body for Flow {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

fn whole(bytes: Vec<u8>) -> Flow {
    let (sender, receiver) = mpsc::channel(1);
    // There is room for one.
    let _ = sender.try_send(bytes.into());
    Flow(receiver)
}

/// Serves one connection until it is aborted.
pub(super) async fn connection<S>(api: FakeApi, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let api = api.clone();
        async move { Ok::<_, Infallible>(answer(api, request).await) }
    });
    // The client's end is all there is to say.
    let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

fn json_answer(code: u16, value: &Value) -> Response<Flow> {
    let mut response = Response::new(whole(value.to_string().into_bytes()));
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
    response
}

fn refuse((code, reason): Refusal) -> Response<Flow> {
    let status = json!({"kind": "Status", "code": code, "reason": reason, "message": format!("the fake says {reason}")});
    json_answer(code, &status)
}

async fn answer(api: FakeApi, request: Request<Incoming>) -> Response<Flow> {
    let path = request.uri().path().to_owned();
    let text = request.uri().query().unwrap_or_default().to_owned();
    let query = query(&text);
    let is_watch = query.get("watch").is_some_and(|watch| watch == "true");
    let method = request.method().clone();
    let verb = if is_watch { "WATCH".to_owned() } else { method.to_string() };
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let asked = if text.is_empty() { path.clone() } else { format!("{path}?{text}") };
    let mut after = false;
    match api.fault(&verb, &asked) {
        None => {}
        Some(Fault::Refuse(code, pause)) => {
            let mut response = refuse((code, "Faulty"));
            if let Some(pause) = pause {
                response.headers_mut().insert(http::header::RETRY_AFTER, pause.into());
            }
            return response;
        }
        Some(Fault::Hang) => std::future::pending::<()>().await,
        Some(Fault::Break) => {
            api.break_connections();
            std::future::pending::<()>().await;
        }
        Some(Fault::Garbage) => return Response::new(whole(b"<html>".to_vec())),
        Some(Fault::BreakAfter) => after = true,
    }
    let address = Address::of(&path);
    let field = query.get("fieldSelector").cloned().unwrap_or_default();
    let response = if is_watch {
        watch(&api, address, field, &query)
    } else if method == Method::GET && address.name.is_empty() {
        list(&api, &address, &field)
    } else {
        change(&api, &method, &address, &body)
    };
    if after {
        api.break_connections();
        std::future::pending::<()>().await;
    }
    response
}

fn list(api: &FakeApi, at: &Address, fields: &str) -> Response<Flow> {
    let state = api.lock();
    let items = state.objects.list(at, fields);
    let version = state.objects.version().to_string();
    json_answer(200, &json!({"metadata": {"resourceVersion": version}, "items": items}))
}

fn change(api: &FakeApi, method: &Method, at: &Address, body: &[u8]) -> Response<Flow> {
    let mut body: Value = serde_json::from_slice(body).unwrap_or_default();
    drop_fields(&mut body, &api.lock().unknown_fields);
    let mut result = Err((405, "MethodNotAllowed"));
    api.change(|objects| {
        result = match *method {
            Method::GET => objects.get(at).cloned().ok_or((404, "NotFound")),
            Method::POST if at.sub == "token" => Ok(json!({"status": {
                "token": format!("token-of-{}-for-{}", at.name, body["spec"]["boundObjectRef"]["name"].as_str().unwrap_or_default()),
                "expirationTimestamp": "2100-01-01T00:00:00Z"}})),
            Method::POST => objects.create(at, body),
            Method::PATCH => objects.patch(at, &body),
            Method::DELETE => objects.delete(at, &body),
            _ => Err((405, "MethodNotAllowed")),
        };
    });
    match result {
        Ok(object) => json_answer(200, &object),
        Err(refusal) => refuse(refusal),
    }
}

fn watch(
    api: &FakeApi,
    at: Address,
    fields: String,
    query: &std::collections::BTreeMap<String, String>,
) -> Response<Flow> {
    let streaming = query.get("sendInitialEvents").is_some_and(|on| on == "true");
    let mut first = Vec::new();
    let mut version = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    {
        let state = api.lock();
        if streaming && state.without_streaming {
            return refuse((422, "Invalid"));
        }
        if streaming {
            version = state.objects.version();
            first.extend(state.objects.list(&at, &fields).into_iter().map(|object| line("ADDED", &object)));
            let annotations = json!({"k8s.io/initial-events-end": "true"});
            let end =
                json!({"metadata": {"resourceVersion": version.to_string(), "annotations": annotations}});
            first.push(line("BOOKMARK", &end));
        }
    }
    let (sender, receiver) = mpsc::channel(1024);
    let mut versions = api.version.subscribe();
    let api = api.clone();
    tokio::spawn(async move {
        for line in first {
            if sender.send(line).await.is_err() {
                return;
            }
        }
        let mut told = Vec::new();
        loop {
            versions.borrow_and_update();
            let (news, repeats) = {
                let state = api.lock();
                (state.objects.since(&at, &fields, version), state.repeats)
            };
            let Some(news) = news else {
                let gone = json!({"kind": "Status", "code": 410, "reason": "Expired"});
                let _ = sender.send(line("ERROR", &gone)).await;
                return;
            };
            for one in news {
                version = one.version;
                told.push(line(one.kind, &one.object));
                let again = if repeats { told.len() } else { 0 };
                for line in told.last().into_iter().chain(told.iter().rev().take(again)) {
                    if sender.send(line.clone()).await.is_err() {
                        return;
                    }
                }
            }
            tokio::select! {
                () = sender.closed() => return,
                changed = versions.changed() => if changed.is_err() { return },
            }
        }
    });
    Response::new(Flow(receiver))
}

fn drop_fields(value: &mut Value, names: &[&str]) {
    match value {
        Value::Object(map) => {
            map.retain(|name, _| !names.contains(&name.as_str()));
            map.values_mut().for_each(|value| drop_fields(value, names));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| drop_fields(value, names)),
        _ => {}
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({"type": kind, "object": object})).into()
}
