//! Who a caller is and what is said to one who may not do what it asked. Pure values; the checks are in
//! `longshore_agent::server`.

use std::collections::BTreeMap;

use super::route::Needed;

/// Everyone who has shown who they are is in this group.
pub const AUTHENTICATED: &str = "system:authenticated";

/// A caller, as the API server is asked about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            ..Self::default()
        }
    }

    /// One who has shown who it is: with the group of all of these.
    #[must_use]
    pub fn authenticated(mut self) -> Self {
        if !self.groups.iter().any(|group| group == AUTHENTICATED) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }
}

/// The body of a 403.
pub fn forbidden(user: &User, needed: &Needed) -> String {
    let subresources = needed.subresources.join(" ");
    let verb = needed.verb.name();
    format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{subresources}])\n", user.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet_api::route::{Route, Verb, needed};

    #[test]
    fn a_refusal_names_who_and_what() {
        let user = User { name: "bob".into(), ..User::default() }.authenticated().authenticated();
        assert_eq!(user.groups, [AUTHENTICATED]);
        let needed = needed(Route::parse("/pods").as_ref(), Verb::Get);
        let expected = "Forbidden (user=bob, verb=get, resource=nodes, subresource(s)=[pods proxy])\n";
        assert_eq!(forbidden(&user, &needed), expected);
        assert_eq!(User::anonymous().groups, ["system:unauthenticated"]);
    }
}
