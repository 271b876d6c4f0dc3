//! The `systemd` driver: groups are slice units, made and changed over D-Bus, since systemd undoes what
//! others do to its part of the hierarchy. Figures and kills go to the file system as in the other
//! driver. One connection, made at first use and again after it broke.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use longshore_core::pod::step::CgroupLimits;
use tokio::sync::Mutex;
use zbus::zvariant::{OwnedObjectPath, Value};

use super::{CgroupError, CgroupStat, Cgroups, FsCgroups, MemoryEvents, relative};

/// How long systemd may take for one unit; under load on a slow machine it takes seconds.
const JOB_DEADLINE: Duration = Duration::from_secs(30);

/// What unlimited is to systemd.
const INFINITY: u64 = u64::MAX;

/// systemd rounds CPU quotas to this many microseconds per second itself, downwards; doing it upwards
/// here keeps a small quota from becoming less than was asked for.
const QUOTA_STEP: u64 = 10_000;

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Systemd {
    fn subscribe(&self) -> zbus::Result<()>;

    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Value<'_>)],
        aux: &[(&str, &[(&str, Value<'_>)])],
    ) -> zbus::Result<OwnedObjectPath>;

    fn set_unit_properties(
        &self,
        name: &str,
        runtime: bool,
        properties: &[(&str, Value<'_>)],
    ) -> zbus::Result<()>;

    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String);
}

/// Groups as slices of systemd.
#[derive(Debug)]
pub struct SystemdCgroups {
    files: FsCgroups,
    manager: Mutex<Option<SystemdProxy<'static>>>,
}

impl SystemdCgroups {
    /// Slices of the system's systemd; `files` reads what it made.
    pub fn new(files: FsCgroups) -> Self {
        SystemdCgroups { files, manager: Mutex::new(None) }
    }

    /// The connection, made where there is none. Subscribed, so that finished jobs are told.
    async fn manager(&self, path: &str) -> Result<SystemdProxy<'static>, CgroupError> {
        let mut manager = self.manager.lock().await;
        if let Some(manager) = manager.as_ref() {
            return Ok(manager.clone());
        }
        let connect = async {
            let connection = zbus::Connection::system().await?;
            let proxy = SystemdProxy::new(&connection).await?;
            proxy.subscribe().await?;
            Ok(proxy)
        };
        let proxy = connect.await.map_err(|err| failure(path, "connect", &err))?;
        Ok(manager.insert(proxy).clone())
    }

    /// Start a job and wait until systemd removed it from its queue. The signal is listened to before
    /// the job is made, since a short one is over before the answer is here.
    async fn job<F>(
        &self,
        path: &str,
        op: &'static str,
        start: impl FnOnce(SystemdProxy<'static>) -> F,
    ) -> Result<(), CgroupError>
    where
        F: Future<Output = zbus::Result<OwnedObjectPath>>,
    {
        let manager = self.manager(path).await?;
        let run = async {
            let mut removed = manager.receive_job_removed().await?;
            let job = start(manager.clone()).await?;
            while let Some(signal) = removed.next().await {
                let args = signal.args()?;
                if args.job == job {
                    return Ok(Some(args.result.clone()));
                }
            }
            Ok(None)
        };
        match tokio::time::timeout(JOB_DEADLINE, run).await {
            Ok(Ok(Some(result))) if result == "done" => Ok(()),
            Ok(Ok(Some(result))) => Err(unit_failure(path, op, format!("job ended with {result:?}"))),
            Ok(Ok(None)) => {
                self.manager.lock().await.take();
                Err(unit_failure(path, op, "the connection was closed".to_owned()))
            }
            Ok(Err(err)) => {
                if matches!(err, zbus::Error::InputOutput(_)) {
                    self.manager.lock().await.take();
                }
                Err(failure(path, op, &err))
            }
            Err(_) => Err(unit_failure(path, op, format!("job not done after {JOB_DEADLINE:?}"))),
        }
    }

    async fn start(&self, path: &str, unit: &str, limits: &CgroupLimits) -> Result<(), CgroupError> {
        let description = format!("longshore cgroup {unit}");
        let mut properties = vec![
            ("Description", Value::from(description)),
            ("DefaultDependencies", Value::from(false)),
            ("CPUAccounting", Value::from(true)),
            ("MemoryAccounting", Value::from(true)),
            ("TasksAccounting", Value::from(true)),
            ("IOAccounting", Value::from(true)),
        ];
        // A slice lies where its name says; wanting the parent starts it too.
        if let Some(parent) = parent_slice(unit) {
            properties.push(("Wants", Value::from(vec![parent])));
        }
        properties.extend(limit_properties(limits));
        self.job(path, "start slice", |manager| async move {
            manager.start_transient_unit(unit, "replace", &properties, &[]).await
        })
        .await
    }
}

/// The unit a path ends in, which has to be a slice.
fn unit_of(path: &str) -> Result<&str, CgroupError> {
    let name = relative(path)?.file_name().and_then(|name| name.to_str());
    name.filter(|name| name.ends_with(".slice")).ok_or_else(|| CgroupError::BadPath(path.to_owned()))
}

/// `a-b-c.slice` lies in `a-b.slice`; one without a dash in the root slice.
fn parent_slice(unit: &str) -> Option<String> {
    let (parent, _) = unit.strip_suffix(".slice")?.rsplit_once('-')?;
    Some(format!("{parent}.slice"))
}

/// Limits as systemd's properties (`systemd.resource-control(5)`); absent ones are set to the default,
/// so that a limit that was taken away goes.
fn limit_properties(limits: &CgroupLimits) -> Vec<(&'static str, Value<'static>)> {
    let (quota, period) = match limits.cpu_max {
        Some((quota, period)) if period > 0 => {
            let per_second = u128::from(quota) * 1_000_000 / u128::from(period);
            let per_second = u64::try_from(per_second).unwrap_or(INFINITY - QUOTA_STEP);
            (per_second.next_multiple_of(QUOTA_STEP), period)
        }
        _ => (INFINITY, INFINITY),
    };
    vec![
        ("CPUWeight", Value::from(limits.cpu_weight.unwrap_or(INFINITY))),
        ("CPUQuotaPerSecUSec", Value::from(quota)),
        ("CPUQuotaPeriodUSec", Value::from(period)),
        ("MemoryMax", Value::from(limits.memory_max.unwrap_or(INFINITY))),
        ("TasksMax", Value::from(limits.pids_max.unwrap_or(INFINITY))),
    ]
}

fn unit_failure(path: &str, op: &'static str, detail: String) -> CgroupError {
    CgroupError::Systemd { path: path.to_owned(), op, detail, retryable: true }
}

fn failure(path: &str, op: &'static str, err: &zbus::Error) -> CgroupError {
    let retryable = !is_error(err, "org.freedesktop.DBus.Error.InvalidArgs")
        && !is_error(err, "org.freedesktop.DBus.Error.AccessDenied");
    CgroupError::Systemd { path: path.to_owned(), op, detail: err.to_string(), retryable }
}

fn is_error(err: &zbus::Error, name: &str) -> bool {
    matches!(err, zbus::Error::MethodError(error, _, _) if error.as_str() == name)
}

#[async_trait]
impl Cgroups for SystemdCgroups {
    async fn ensure(&self, path: &str, limits: &CgroupLimits) -> Result<(), CgroupError> {
        let unit = unit_of(path)?;
        // An existing slice is changed, not started again: that would not touch its limits.
        if self.exists(path).await? {
            let manager = self.manager(path).await?;
            let properties = limit_properties(limits);
            match manager.set_unit_properties(unit, true, &properties).await {
                Ok(()) => {}
                // The folder is there without its unit: left from before, or made by somebody else.
                Err(err) if is_error(&err, "org.freedesktop.systemd1.NoSuchUnit") => {
                    self.start(path, unit, limits).await?;
                }
                Err(err) => return Err(failure(path, "set limits", &err)),
            }
        } else {
            self.start(path, unit, limits).await?;
        }
        self.files.limit_hugetlb(path, limits)
    }

    async fn stat(&self, path: &str) -> Result<Option<CgroupStat>, CgroupError> {
        self.files.stat(path).await
    }

    async fn memory_events(&self, path: &str) -> Result<Option<MemoryEvents>, CgroupError> {
        self.files.memory_events(path).await
    }

    async fn kill(&self, path: &str) -> Result<(), CgroupError> {
        self.files.kill(path).await
    }

    async fn remove(&self, path: &str) -> Result<(), CgroupError> {
        let unit = unit_of(path)?;
        let stopped = self
            .job(path, "stop slice", |manager| async move { manager.stop_unit(unit, "replace").await })
            .await;
        match stopped {
            Err(CgroupError::Systemd { detail, .. }) if detail.contains("NoSuchUnit") => {}
            outcome => outcome?,
        }
        // systemd removes what it made; what a runtime made inside may be left.
        self.files.remove(path).await
    }

    async fn exists(&self, path: &str) -> Result<bool, CgroupError> {
        self.files.exists(path).await
    }

    async fn children(&self, path: &str) -> Result<Vec<String>, CgroupError> {
        self.files.children(path).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn property(limits: &CgroupLimits, name: &str) -> u64 {
        let properties = limit_properties(limits);
        let (_, value) = properties.iter().find(|(known, _)| *known == name).unwrap();
        u64::try_from(value).unwrap()
    }

    #[test]
    fn a_slice_lies_where_its_name_says() {
        let path = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podab_c.slice";
        let unit = unit_of(path).unwrap();
        assert_eq!(unit, "kubepods-burstable-podab_c.slice");
        assert_eq!(parent_slice(unit).as_deref(), Some("kubepods-burstable.slice"));
        assert_eq!(parent_slice("kubepods.slice"), None);
        assert!(unit_of("/kubepods/podx").is_err(), "a group of the other driver");
    }

    #[test]
    fn limits_are_properties_and_their_absence_is_the_default() {
        let none = CgroupLimits::default();
        for name in ["CPUWeight", "CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec", "MemoryMax", "TasksMax"] {
            assert_eq!(property(&none, name), INFINITY, "{name}");
        }
        let limits = CgroupLimits {
            cpu_weight: Some(20),
            cpu_max: Some((12_345, 100_000)),
            memory_max: Some(1 << 20),
            pids_max: Some(99),
            ..CgroupLimits::default()
        };
        assert_eq!(property(&limits, "CPUWeight"), 20);
        assert_eq!(property(&limits, "CPUQuotaPerSecUSec"), 130_000, "123450 us, rounded up");
        assert_eq!(property(&limits, "CPUQuotaPeriodUSec"), 100_000);
        assert_eq!(property(&limits, "MemoryMax"), 1 << 20);
        assert_eq!(property(&limits, "TasksMax"), 99);
    }
}
