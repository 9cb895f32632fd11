//! The Workload API's JWT-SVID profile.

use postern_svid::jwt;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as ProtoValue};
use serde_json::{Map, Value};
use tonic::Status;

use super::Shared;
use crate::identity::Keyed;
use crate::proto::spiffe::{
    JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse,
};

const NO_JWT: &str = "no trust domain known here issues JWT-SVIDs (control.yaml of the control plane: `jwt`); use the X.509-SVID";

impl Shared {
    /// A token of the sidecar's own id, which is the workload's.
    pub(super) async fn token(&self, request: JwtsvidRequest) -> Result<JwtsvidResponse, Status> {
        let JwtsvidRequest { mut audience, spiffe_id } = request;
        let held = self.usable()?;
        let own = held.identity.svid.id();
        if audience.iter().all(String::is_empty) {
            return Err(Status::invalid_argument("for whom is the token? `audience` must name one at least"));
        }
        if !spiffe_id.is_empty() && spiffe_id != own.as_str() {
            return Err(Status::permission_denied(format!("the only identity here is {own}")));
        }
        // The same audiences in another order are the same token.
        audience.sort_unstable();
        audience.dedup();
        let token = self.observer.live().jwt_svid(&held.identity, audience).await?;
        let svid = Jwtsvid {
            spiffe_id: own.as_str().to_owned(),
            svid: token.as_ref().to_owned(),
            hint: String::new(),
        };
        Ok(JwtsvidResponse { svids: vec![svid] })
    }

    /// Whether there are JWT bundles to stream.
    pub(super) fn has_jwt_keys(&self) -> Result<(), Status> {
        let held = self.current()?;
        let has = held.identity.bundles.iter().any(|bundle| !bundle.jwt_keys().is_empty());
        if has { Ok(()) } else { Err(Status::unimplemented(NO_JWT)) }
    }

    /// What a token says, if it is true.
    pub(super) fn validate(
        &self,
        request: &ValidateJwtsvidRequest,
    ) -> Result<ValidateJwtsvidResponse, Status> {
        if request.audience.is_empty() {
            return Err(Status::invalid_argument("`audience` must say as whom the token is looked at"));
        }
        let held = self.current()?;
        let now = self.observer.clock().wall();
        let svid = jwt::verify(&request.svid, &request.audience, &held.identity.bundles, now)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(ValidateJwtsvidResponse {
            spiffe_id: svid.id.as_str().to_owned(),
            claims: Some(structure(svid.claims)),
        })
    }
}

/// The keys of every trust domain that has any, as JWK sets.
pub(super) fn bundles(held: &Keyed) -> (Vec<u8>, JwtBundlesResponse) {
    let with_keys = held.identity.bundles.iter().filter(|bundle| !bundle.jwt_keys().is_empty());
    let bundles =
        with_keys.map(|bundle| (bundle.trust_domain().id(), bundle.jwt_keys().to_jwks().into_bytes()));
    let bundles: std::collections::BTreeMap<_, _> = bundles.collect();
    let mark = bundles.iter().flat_map(|(id, keys)| [id.as_bytes(), keys].concat()).collect();
    (mark, JwtBundlesResponse { bundles: bundles.into_iter().collect() })
}

/// Nested no deeper than the token's JSON was, which its reader has bounded.
fn structure(claims: Map<String, Value>) -> Struct {
    Struct { fields: claims.into_iter().map(|(name, value)| (name, proto(value))).collect() }
}

fn proto(value: Value) -> ProtoValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(truth) => Kind::BoolValue(truth),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => {
            Kind::ListValue(ListValue { values: values.into_iter().map(proto).collect() })
        }
        Value::Object(object) => Kind::StructValue(structure(object)),
    };
    ProtoValue { kind: Some(kind) }
}
