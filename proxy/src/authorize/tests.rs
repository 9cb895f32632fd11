use postern_policy::norm::{CanonHost, CanonMethod, CanonPath};
use postern_policy::{Generation, HeaderFields, TokenSet};

use super::*;
use crate::connections::{Direction, Operation};
use crate::testing;

/// What differs: how `%2F` is read, and whether `/files/a/b` is denied.
fn documents(escaped: &str, denies: bool) -> String {
    let denied = if denies { "/files/a/b" } else { "/elsewhere" };
    format!(
        "
apiVersion: postern.dev/v1alpha1
kind: MeshDefaults
metadata: {{name: default, namespace: postern-system}}
spec: {{http: {{escapedSlashes: {escaped}}}}}
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: all, namespace: shop}}
spec:
  target: {{selector: {{app: orders}}}}
  action: Allow
  rules: [{{name: web, from: [{{serviceAccounts: [web]}}]}}]
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: not, namespace: shop}}
spec:
  target: {{selector: {{app: orders}}}}
  action: Deny
  rules: [{{name: files, to: [{{paths: [{denied}]}}]}}]
"
    )
}

fn publish(sidecar: &Sidecar, generation: &Arc<Generation>) {
    sidecar.snapshots.publish(|snapshot| snapshot.policy = Some(Arc::clone(generation)));
}

fn facts(snapshot: &Snapshot) -> Facts {
    let options = snapshot.policy.as_ref().unwrap().defaults().path;
    get(CanonPath::parse("/files/a%2Fb", &options).unwrap())
}

fn get(path: CanonPath) -> Facts {
    Facts {
        port: 8080,
        operation: Operation::Http {
            method: CanonMethod::get(),
            path,
            host: CanonHost::parse("orders.shop").unwrap(),
            headers: HeaderFields::new(),
            upgrade: None,
            tokens: TokenSet::absent(),
        },
        destination: None,
        asked: None,
    }
}

fn judged_by(sidecar: &Sidecar) -> u64 {
    sidecar.decisions.recent()[0].verdict.unwrap().generation
}

fn path(stream: &Stream) -> String {
    stream.entry().facts.method_and_path().1.to_owned()
}

#[test]
fn a_policy_published_before_the_registration_makes_the_stream_out_anew_and_judges_it() {
    let sidecar = testing::sidecar("");
    let (old, new) = (
        testing::generation(&sidecar, 1, &documents("Keep", false)),
        testing::generation(&sidecar, 2, &documents("Decode", true)),
    );
    publish(&sidecar, &old);
    let registered = testing::connection(&sidecar, Direction::Inbound);
    let mut snapshot = sidecar.snapshots.held();
    let mut made = 0;
    let (opened, ()) = register(&sidecar, registered.connection(), &mut snapshot, |snapshot| {
        made += 1;
        let facts = facts(snapshot);
        if made == 1 {
            // Published and re-judged before the stream can be found.
            publish(&sidecar, &new);
            assert_eq!(
                sidecar.registry.rejudge(
                    &new,
                    &sidecar.config,
                    std::time::Duration::ZERO,
                    sidecar.clock.wall()
                ),
                0
            );
        }
        Ok((facts, ()))
    })
    .unwrap();
    assert_eq!((made, path(&opened).as_str()), (2, "/files/a/b"), "read as the new policy reads");
    let judgement = stream(&sidecar, &opened, &snapshot);
    assert_eq!(judgement.refused, Some(Reason::PolicyDenied), "the new policy denies it");
    assert_eq!(judged_by(&sidecar), 2);
    // What was made out by the old policy left no trace.
    assert_eq!(sidecar.registry.streams().len(), 1);
    assert_eq!(sidecar.metrics.streams_active[0].get(), 1);
    let page = sidecar.metrics.render();
    assert!(page.contains("postern_failures_total{direction=\"inbound\",reason=\"canceled\"} 0"), "{page}");
}

#[test]
fn a_request_is_judged_by_the_policy_that_it_was_read_by_and_a_later_one_finds_it() {
    let sidecar = testing::sidecar("");
    publish(&sidecar, &testing::generation(&sidecar, 1, &documents("Keep", false)));
    let registered = testing::connection(&sidecar, Direction::Inbound);
    let mut snapshot = sidecar.snapshots.held();
    let (opened, ()) =
        register(&sidecar, registered.connection(), &mut snapshot, |snapshot| Ok((facts(snapshot), ())))
            .unwrap();
    let new = testing::generation(&sidecar, 2, &documents("Keep", true));
    publish(&sidecar, &new);
    let judgement = stream(&sidecar, &opened, &snapshot);
    assert!(judgement.refused.is_none(), "one snapshot reads and judges");
    assert_eq!(judged_by(&sidecar), 1);
    assert_eq!(
        sidecar.registry.rejudge(&new, &sidecar.config, std::time::Duration::ZERO, sidecar.clock.wall()),
        1
    );
}

#[test]
fn a_policy_that_never_rests_ends_in_an_error() {
    let sidecar = testing::sidecar("");
    let generations = [1, 2].map(|number| testing::generation(&sidecar, number, &documents("Keep", false)));
    publish(&sidecar, &generations[0]);
    let registered = testing::connection(&sidecar, Direction::Inbound);
    let mut snapshot = sidecar.snapshots.held();
    let mut made = 0;
    let error = register(&sidecar, registered.connection(), &mut snapshot, |snapshot| {
        made += 1;
        publish(&sidecar, &generations[made % 2]);
        Ok((facts(snapshot), ()))
    })
    .unwrap_err();
    assert_eq!((made, error.reason), (TRIES, Reason::Overloaded));
    assert!(sidecar.registry.streams().is_empty());
}

#[test]
fn a_raw_path_that_went_on_while_no_rule_spoke_of_paths_ends_when_one_does() {
    let sidecar = testing::sidecar("");
    let policy = |to: &str| {
        format!(
            "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: all, namespace: shop}}\nspec: \
             {{action: Allow, rules: [{{name: web, to: [{to}]}}]}}\n"
        )
    };
    publish(&sidecar, &testing::generation(&sidecar, 1, &policy("{ports: [8080]}")));
    let registered = testing::connection(&sidecar, Direction::Inbound);
    let open = |raw: &str| {
        let mut snapshot = sidecar.snapshots.held();
        let options = postern_policy::norm::PathOptions { preserve_raw: true, ..Default::default() };
        let make = |_: &Snapshot| Ok((get(CanonPath::parse(raw, &options).unwrap()), ()));
        let (opened, ()) = register(&sidecar, registered.connection(), &mut snapshot, make).unwrap();
        assert!(stream(&sidecar, &opened, &snapshot).refused.is_none(), "no rule speaks of paths");
        opened
    };
    let (raw, canonical) = (open("/files//a"), open("/files/a"));
    let rejudged = |number: u64, to: &str| {
        let generation = testing::generation(&sidecar, number, &policy(to));
        sidecar.registry.rejudge(
            &generation,
            &sidecar.config,
            std::time::Duration::ZERO,
            sidecar.clock.wall(),
        )
    };
    assert_eq!(rejudged(2, "{ports: [8080], methods: [GET]}"), 0);
    // Either path is allowed, but only one of them was judged as it was forwarded.
    assert_eq!(rejudged(3, "{ports: [8080], pathPrefix: [/files]}"), 1);
    assert!(raw.entry().is_revoked() && !canonical.entry().is_revoked());
}
