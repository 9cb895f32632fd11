//! What to try while `--keep` leaves the mesh running.

use crate::demo::documents::ORDERS_FILE;
use crate::demo::mesh::Mesh;
use crate::demo::plan::{Apart, Ground, NAMESPACE, Place, Plan, SERVICE_PORT, Service};

/// Commands that work in another terminal, as they stand.
pub(crate) fn text(mesh: &Mesh) -> String {
    if let Ground::Namespaces(apart) = mesh.plan.ground {
        return in_namespaces(mesh, apart);
    }
    let plan = &mesh.plan;
    let binary =
        std::env::current_exe().map_or_else(|_| "postern".to_owned(), |path| path.display().to_string());
    let socket = mesh.files.admin_socket(Service::Orders);
    let orders_file = mesh.files.documents().join(ORDERS_FILE);
    format!(
        "
The mesh keeps running until Ctrl-C. In another terminal:

  a customer at the storefront, two hops behind it
    curl http://{storefront}/v1/checkout/42
  a call as the storefront, through its sidecar
    curl --proxy http://{out} http://orders.shop/v1/orders/42
  a refused one; the answer names the decision, the admin socket the reason
    curl -i --proxy http://{out} -X DELETE http://orders.shop/v1/orders/42
    {binary} proxy --socket {socket} decisions
    {binary} proxy --socket {socket} explain --from {caller} --port {port} \
      --host orders.shop --header 'accept: */*' DELETE /v1/orders/42
  a stream that is reset when you take the rule `storefront-refunds` out of the policy
    curl -N --proxy http://{out} http://orders.shop/v1/refunds/events
    ${{EDITOR:-vi}} {orders_file}
  who is connected, and with which certificate
    {binary} proxy --socket {socket} connections
    {binary} proxy --socket {socket} identity
  every certificate of the mesh, and who has which trust bundle
    curl http://{mesh_admin}/v1/certs
    curl http://{mesh_admin}/v1/workloads
  figures
    curl http://{health}/metrics
",
        storefront = plan.service(Service::Storefront),
        out = plan.outbound(Service::Storefront),
        socket = socket.display(),
        caller = format_args!("{NAMESPACE}/{}", Service::Storefront),
        port = plan.service(Service::Orders).port(),
        orders_file = orders_file.display(),
        mesh_admin = plan.mesh_admin(),
        health = plan.health(Service::Orders),
    )
}

fn in_namespaces(mesh: &Mesh, apart: Apart) -> String {
    let binary =
        std::env::current_exe().map_or_else(|_| "postern".to_owned(), |path| path.display().to_string());
    let own = std::process::id();
    // The mounts are the demo's own: first into those, then into one party's network.
    let user = if apart == Apart::Mark { " -U --preserve-credentials" } else { "" };
    let enter = |place: Place| {
        let at = mesh.files.mounted(place.name());
        format!("nsenter -t {own}{user} -m nsenter --net={}", at.display())
    };
    let [called, called6] = Plan::called(Service::Orders.name());
    let [orders, _] = mesh.plan.both(Place::Service(Service::Orders));
    format!(
        "
The mesh keeps running until Ctrl-C. In another terminal, as the same user:

  a call of the storefront's, to a plain address
    {storefront} curl http://{called}/v1/orders/42
  a refused one; the answer names the decision, the admin socket the reason
    {storefront} curl -i -X DELETE http://[{called6}]/v1/orders/42
    {binary} proxy --socket {socket} decisions
  a stranger's
    {outsider} curl -i http://{orders}:{SERVICE_PORT}/v1/orders/42
  the rules
    {at_orders} nft list ruleset
",
        storefront = enter(Place::Service(Service::Storefront)),
        outsider = enter(Place::Outsider),
        at_orders = enter(Place::Service(Service::Orders)),
        socket = mesh.files.admin_socket(Service::Orders).display(),
    )
}
