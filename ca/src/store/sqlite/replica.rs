//! The copy of what replicas share, in this replica's own database: with it a control plane starts and issues while the shared
//! store is away. What others have changed is told in this ledger as it is taken up.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use postern_svid::Revoked;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::rows::{self, ms, number};
use super::{Sqlite, StoreError, jwt, order, outbox, schema, trust};
use crate::store::replica::{Document, Held};
use crate::store::{
    Authority, AuthorityChange, Edit, Edited, JwtChange, JwtKey, Kind, Reason, Revocation, State,
};
use crate::token::TokenRecord;

/// The name of this replica; there is none where the database is not shared.
const REPLICA: &str = "replica";
/// What tells this database from an earlier one of the same replica's.
const INSTANCE: &str = "replica_instance";
/// The version of the shared value that was taken up last.
const SHARED_VERSION: &str = "shared_version";

/// What was taken up last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TakenUp {
    /// The version of the shared value.
    pub(crate) version: u64,
    /// The trust bundle's.
    pub(crate) sequence: u64,
}

/// How long the control plane may take for an edit: it may have to wait for the lease of a replica that has died.
const ANSWER: Duration = Duration::from_secs(20);
/// Between two looks for its answer.
const LOOK: Duration = Duration::from_millis(50);

/// Whether the database is that of a replica.
pub(super) fn is_shared(connection: &Connection) -> Result<bool, StoreError> {
    Ok(schema::text(connection, REPLICA)?.is_some())
}

/// Makes a database that of a CA that is alone.
pub(super) fn leave(connection: &Connection) -> Result<(), StoreError> {
    let sql = "DELETE FROM meta WHERE name IN (?1, ?2, ?3)";
    connection.execute(sql, [REPLICA, INSTANCE, SHARED_VERSION])?;
    Ok(())
}

impl Sqlite {
    /// The replica that this database belongs to, if it is one.
    pub fn replica(&self) -> Result<Option<String>, StoreError> {
        self.call(|connection| schema::text(connection, REPLICA))
    }

    /// Makes the database that of the replica `name`; gives what tells it from an earlier one of that name.
    pub(crate) fn join_replicas(&self, name: &str) -> Result<String, StoreError> {
        let name = name.to_owned();
        self.call(move |connection| {
            match schema::text(connection, REPLICA)? {
                Some(found) if found != name => return Err(StoreError::OtherReplica { found, wanted: name }),
                Some(_) => {}
                None => schema::set_text(connection, REPLICA, &name)?,
            }
            if let Some(instance) = schema::text(connection, INSTANCE)? {
                return Ok(instance);
            }
            let mut bytes = [0; 16];
            getrandom::fill(&mut bytes)
                .map_err(|_| StoreError::File("the system's random source failed".to_owned()))?;
            let instance = crate::hex(&bytes);
            schema::set_text(connection, INSTANCE, &instance)?;
            Ok(instance)
        })
    }

    /// Has the running control plane of this replica carry out an edit, and waits for its answer.
    pub fn ask(&self, edit: Edit) -> Result<Edited, StoreError> {
        let number = self.call(move |connection| order::add_edit(connection, &edit))?;
        let began = Instant::now();
        while began.elapsed() < ANSWER {
            if let Some(answer) = self.answer_to(number)? {
                return order::read_edit(&answer);
            }
            #[expect(clippy::disallowed_methods, reason = "whoever asks does nothing else meanwhile")]
            std::thread::sleep(LOOK);
        }
        if self.withdraw_order(number)? {
            return Err(StoreError::Unanswered);
        }
        self.answer_to(number)?.map_or(Err(StoreError::Unanswered), |answer| order::read_edit(&answer))
    }

    /// Carries out what was asked for with [`ask`](Self::ask), by `work`.
    pub fn carry_out(
        &self,
        work: impl Fn(Edit) -> Result<Edited, StoreError>,
        at: SystemTime,
    ) -> Result<(), StoreError> {
        for (number, edit) in self.read(order::open_edits)? {
            let done = edit.map_err(StoreError::Refused).and_then(&work);
            if let Err(error) = &done {
                tracing::warn!(%error, "what an operator asked for was not done");
            }
            self.answer_order(number, order::of_edit(&done), at)?;
        }
        Ok(())
    }

    /// What was taken up last.
    pub(crate) fn taken_up(&self) -> Result<TakenUp, StoreError> {
        self.read(|connection| {
            Ok(TakenUp {
                version: schema::number(connection, SHARED_VERSION)?,
                sequence: schema::number(connection, "bundle_sequence")?,
            })
        })
    }

    /// All that is to be shared, as this database has it.
    pub(crate) fn to_share(&self, replica: &str) -> Result<Document, StoreError> {
        let (path, replica) = (self.path.clone(), replica.to_owned());
        self.read(move |connection| {
            let whole = trust::trust(connection, &path)?;
            let authorities = whole.authorities.into_iter().map(|mut row| {
                let told = |state: &str| -> Result<Option<String>, StoreError> {
                    let sql =
                        "SELECT reason FROM journal WHERE label = ?1 AND state = ?2 ORDER BY number DESC";
                    Ok(connection.query_row(sql, [row.label.as_str(), state], |row| row.get(0)).optional()?)
                };
                let reason =
                    told(row.state.name())?.unwrap_or_else(|| "before there were replicas".to_owned());
                let tainted_for = told("tainted")?.and_then(|text| Reason::parse(&text).ok());
                if row.kind == Kind::Issuing && row.replica.is_none() {
                    row.replica = Some(replica.clone());
                }
                Ok::<_, StoreError>(Held { row, reason, tainted_for })
            });
            Ok(Document {
                sequence: whole.sequence,
                renew_before: whole.renew_before,
                authorities: authorities.collect::<Result<_, _>>()?,
                revocations: whole.revocations,
                jwt_keys: jwt::keys(connection, &path)?,
            })
        })
    }

    /// What is shared counts its versions anew.
    pub(crate) fn forget_shared_version(&self) -> Result<(), StoreError> {
        self.call(|connection| schema::set_number(connection, SHARED_VERSION, 0))
    }

    /// Takes up what is shared, and of `change`, if that is what this replica has just done to it, what concerns its own CAs.
    pub(crate) fn take_up(
        &self,
        document: Document,
        version: u64,
        replica: &str,
        change: Option<AuthorityChange>,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        let (path, replica) = (self.path.clone(), replica.to_owned());
        self.recorded(move |connection| {
            Copy { connection, path: &path, replica: &replica, now, change: change.as_ref() }
                .take_up(&document, version)
        })?;
        self.note_progress();
        Ok(())
    }

    /// Writes a token down that another replica may have made; one that is there takes what is known of its key now.
    pub(crate) fn mirror_token(&self, token: TokenRecord) -> Result<(), StoreError> {
        self.call(move |connection| {
            // Its making is in the ledger of the replica where that was: here only its use will be.
            connection.execute(
                "INSERT INTO token (hash, spiffe_id, created, expires, record) VALUES (?1, ?2, ?3, ?4, 0)
                 ON CONFLICT (hash) DO NOTHING",
                params![token.hash.0, token.id.as_str(), ms(token.created), ms(token.expires)],
            )?;
            Ok(())
        })
    }
}

struct Copy<'a> {
    connection: &'a Connection,
    path: &'a Path,
    replica: &'a str,
    now: SystemTime,
    change: Option<&'a AuthorityChange>,
}

impl Copy<'_> {
    fn take_up(&self, document: &Document, version: u64) -> Result<(), StoreError> {
        let Self { connection, path, .. } = *self;
        let held = schema::number(connection, "bundle_sequence")?;
        if document.sequence < held {
            return Err(StoreError::SharedRolledBack { shared: document.sequence, held });
        }
        let rows = rows::authorities(connection, path)?;
        for held in &document.authorities {
            match rows.iter().find(|row| row.label == held.row.label) {
                None => self.add(held)?,
                Some(row) => self.update(row, held)?,
            }
        }
        if let Some(change) = self.change {
            self.own_states(change)?;
        }
        self.revocations(&trust::revocations(connection, path)?, &document.revocations)?;
        self.jwt_keys(&jwt::keys(connection, path)?, &document.jwt_keys)?;
        if let Some(before) = document.renew_before {
            let before = ms(before).unsigned_abs();
            if before > schema::number(connection, "renew_before_ms")? {
                schema::set_number(connection, "renew_before_ms", before)?;
                self.journal("", "told to renew now", "as the replicas share it")?;
            }
        }
        schema::set_number(connection, "bundle_sequence", document.sequence)?;
        schema::set_number(connection, SHARED_VERSION, version)
    }

    fn is_own(&self, row: &Authority) -> bool {
        row.replica.as_deref() == Some(self.replica)
    }

    fn add(&self, held: &Held) -> Result<(), StoreError> {
        let Held { row, reason, tainted_for } = held;
        if (row.state == State::Retired || row.kind == Kind::Issuing) && row.not_after < self.now {
            // Forgotten here already, and soon there.
            return Ok(());
        }
        let is_new = self.change.is_some_and(|change| change.add.iter().any(|new| new.label == row.label));
        let mut row = row.clone();
        if self.is_own(&row) {
            if is_new {
                row.replica = None;
            } else {
                // Of a database that was lost, or a step that broke off: nobody knows whether its key is here, and what it has
                // issued is known no better than what another replica has.
                row.state = State::Retired;
            }
        }
        let record = outbox::append(self.connection, self.now, outbox::authority(&row))?;
        self.connection.execute(
            "INSERT INTO authority
             (kind, state, label, key_id, certificate, not_before, not_after, record, since, sequence, replica)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            params![
                row.kind.name(),
                row.state.name(),
                row.label,
                row.key_id,
                row.certificate,
                ms(row.not_before),
                ms(row.not_after),
                number(record),
                ms(row.since),
                number(row.sequence),
                row.replica,
            ],
        )?;
        self.journal(&row.label, row.state.name(), reason)?;
        self.taint(&row, tainted_for.as_ref())
    }

    fn update(&self, here: &Authority, held: &Held) -> Result<(), StoreError> {
        let Held { row, reason, tainted_for } = held;
        if here.certificate != row.certificate || here.kind != row.kind {
            return Err(StoreError::OtherCa(row.label.clone()));
        }
        // Of its own issuing CAs a replica knows better than the others.
        if !self.is_own(row) && (here.state, here.sequence) != (row.state, row.sequence) {
            self.set_state(&row.label, row.state, row.since, reason, here.state != row.state)?;
            self.connection.execute(
                "UPDATE authority SET sequence = ?2 WHERE label = ?1",
                params![row.label, number(row.sequence)],
            )?;
        }
        if here.tainted.is_none() { self.taint(row, tainted_for.as_ref()) } else { Ok(()) }
    }

    /// What the change said of this replica's issuing CAs.
    fn own_states(&self, change: &AuthorityChange) -> Result<(), StoreError> {
        let rows = rows::authorities(self.connection, self.path)?;
        for (label, state) in &change.set {
            let is_here = |row: &&Authority| {
                row.label == *label
                    && row.kind == Kind::Issuing
                    && row.replica.is_none()
                    && row.state != *state
            };
            if rows.iter().any(|row| is_here(&row)) {
                self.set_state(label, *state, change.at, &change.reason, true)?;
            }
        }
        Ok(())
    }

    fn set_state(
        &self,
        label: &str,
        state: State,
        since: SystemTime,
        reason: &str,
        is_told: bool,
    ) -> Result<(), StoreError> {
        self.connection.execute(
            "UPDATE authority SET state = ?2, since = ?3 WHERE label = ?1",
            params![label, state.name(), ms(since)],
        )?;
        if is_told {
            outbox::append(self.connection, self.now, outbox::authority_state(label, state.name(), reason))?;
            self.journal(label, state.name(), reason)?;
        }
        Ok(())
    }

    fn taint(&self, row: &Authority, reason: Option<&Reason>) -> Result<(), StoreError> {
        let Some(at) = row.tainted else { return Ok(()) };
        let reason = reason.map_or("as the replicas share it", Reason::as_str);
        trust::taint(self.connection, &row.label, reason, at).map(drop)
    }

    fn revocations(&self, here: &[Revocation], shared: &[Revocation]) -> Result<(), StoreError> {
        for new in shared {
            let old = here.iter().find(|one| one.entry == new.entry);
            if old.is_none_or(|old| (old.ends.map(ms), &old.reason) != (new.ends.map(ms), &new.reason)) {
                // The ledger's time is when it was learned.
                trust::enter(self.connection, new)?;
                if let Revoked::Authority(key_id) = &new.entry {
                    self.connection.execute(
                        "INSERT INTO journal (at, label, state, reason)
                         SELECT ?1, label, 'on the taint list', ?3 FROM authority WHERE key_id = ?2",
                        params![ms(self.now), key_id, new.reason.as_str()],
                    )?;
                }
            }
        }
        for old in here.iter().filter(|old| !shared.iter().any(|one| one.entry == old.entry)) {
            trust::forget(self.connection, &old.entry, "as the replicas share it", self.now)?;
        }
        Ok(())
    }

    fn jwt_keys(&self, here: &[JwtKey], shared: &[JwtKey]) -> Result<(), StoreError> {
        for new in shared {
            let mut change = JwtChange::at(self.now);
            match here.iter().find(|old| old.label == new.label) {
                None => change.add = Some(new.clone()),
                Some(old) if old.state != new.state => {
                    change.at = new.since;
                    change.set.push((new.label.clone(), new.state));
                }
                Some(_) => continue,
            }
            jwt::apply(self.connection, &change)?;
        }
        for old in here.iter().filter(|old| !shared.iter().any(|key| key.label == old.label)) {
            let change = JwtChange { remove: vec![old.label.clone()], ..JwtChange::at(self.now) };
            jwt::apply(self.connection, &change)?;
        }
        Ok(())
    }

    fn journal(&self, label: &str, state: &str, reason: &str) -> Result<(), StoreError> {
        self.connection.execute(
            "INSERT INTO journal (at, label, state, reason) VALUES (?1, ?2, ?3, ?4)",
            params![ms(self.now), label, state, reason],
        )?;
        Ok(())
    }
}
