//! One signing request from key to stored certificate. Every step can be done again: a daemon that was
//! killed on the way finds key and request and goes on waiting.

use std::time::Duration;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use longshore_cluster::{ApiClient, News, Path, Selector, Watch};
use longshore_core::certificates::{
    CertificateFacts, Verdict, Wish, check_issued, read_certificate, request_name, request_object, verdict,
};
use tokio::sync::mpsc;

use super::{CertificateError, CertificateStore, Key};
use crate::pods::Clock;

/// People are told again after so long that somebody has to approve.
const PATIENCE: Duration = Duration::from_secs(900);

fn requests() -> Path {
    Path::group("certificates.k8s.io", "v1", "certificatesigningrequests")
}

/// Asks for a certificate and stores it; `waits` is told the request's name once somebody else has to act.
///
/// # Errors
/// Where it was refused, or is not there yet after a quarter of an hour; the key then stays for the next try.
pub(super) async fn ask(
    client: &ApiClient,
    wish: &Wish,
    store: &CertificateStore,
    clock: Clock,
    waits: &(dyn Fn(&str) + Sync),
) -> Result<CertificateFacts, CertificateError> {
    let key = store.key()?;
    let name = request_name(wish, &key.hash());
    send(client, wish, &key, &name).await?;
    waits(&name);
    let last = tokio::time::timeout(PATIENCE, wait(client, &name)).await;
    let purpose = wish.purpose;
    let answer = match last {
        Ok(answer) => answer?,
        Err(_) => verdict(read(client, &name).await?.status.as_ref()),
    };
    match answer {
        Verdict::Issued(pem) => {
            let facts = read_certificate(&pem)
                .and_then(|facts| check_issued(&facts, wish, &key.hash(), clock.now()).map(|()| facts));
            match facts {
                Ok(facts) => {
                    store.save(&pem, &key.pem(), clock.now())?;
                    store.forget_key();
                    Ok(facts)
                }
                Err(why) => {
                    store.forget_key();
                    Err(CertificateError::Unwanted { name, why })
                }
            }
        }
        Verdict::Denied(why) => {
            store.forget_key();
            Err(CertificateError::Denied { purpose, name, why })
        }
        Verdict::Failed(why) => {
            store.forget_key();
            Err(CertificateError::Failed { purpose, name, why })
        }
        Verdict::Pending => Err(CertificateError::Unapproved { purpose, name }),
        Verdict::Approved => Err(CertificateError::Unsigned { purpose, name }),
    }
}

/// Creates the request unless it is there: its name follows from the key.
async fn send(client: &ApiClient, wish: &Wish, key: &Key, name: &str) -> Result<(), CertificateError> {
    let object = request_object(wish, name, &key.request(wish)?);
    match client.create::<CertificateSigningRequest>(&requests(), &object).await {
        Ok(_) => {
            tracing::info!(request = name, signer = wish.purpose.signer(), "asked for a {}", wish.purpose)
        }
        Err(error) if error.is_already_exists() => {
            tracing::info!(request = name, "going on with the request for a {} of before", wish.purpose);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

async fn read(client: &ApiClient, name: &str) -> Result<CertificateSigningRequest, CertificateError> {
    Ok(client.get(&requests().then(name)).await?)
}

/// Watches the request until something final has become of it.
async fn wait(client: &ApiClient, name: &str) -> Result<Verdict, CertificateError> {
    let (sender, mut news) = mpsc::unbounded_channel();
    let selector = Selector::all(requests()).fields(format!("metadata.name={name}"));
    let watching = Watch::new(client.clone(), selector).run(move |news| {
        // The receiver lives as long as the watch.
        let _ = sender.send(news);
    });
    let vanished = || CertificateError::Vanished { name: name.to_owned() };
    let follow = async {
        while let Some(news) = news.recv().await {
            let request: CertificateSigningRequest = match news {
                News::Set(_, request) => request,
                News::All(all) => all.into_iter().next().map(|(_, request)| request).ok_or_else(vanished)?,
                News::Gone(..) => return Err(vanished()),
                News::Unreadable(_, why) => {
                    return Err(CertificateError::Unwanted { name: name.to_owned(), why });
                }
            };
            match verdict(request.status.as_ref()) {
                Verdict::Pending | Verdict::Approved => {}
                answer => return Ok(answer),
            }
        }
        Err(vanished())
    };
    tokio::select! {
        () = watching => Err(vanished()),
        answer = follow => answer,
    }
}
