//! The Identity service, the same on every socket but for what "ready" means.

use proto::csi::plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion};
use proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse, identity_server,
};
use tonic::{Request, Response, Status};

/// Name of the driver: in CSIDriver objects, StorageClasses and kubelet's directories.
pub const PLUGIN_NAME: &str = "csi.holdfast.dev";

/// Whether the plugin could serve a call now.
#[tonic::async_trait]
pub trait Readiness: Send + Sync + 'static {
    /// `Ok`, or why not yet. Must answer within a few seconds.
    async fn ready(&self) -> Result<(), String>;
}

/// The Identity service over a test of readiness.
#[derive(Debug)]
pub struct Identity<R>(pub R);

#[tonic::async_trait]
impl<R: Readiness> identity_server::Identity for Identity<R> {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: PLUGIN_NAME.into(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
            manifest: Default::default(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let service = |kind: service::Type| Type::Service(Service { r#type: kind.into() });
        let online = VolumeExpansion { r#type: volume_expansion::Type::Online.into() };
        let capabilities = [
            service(service::Type::ControllerService),
            // Volumes can be used from every node; the topology says where the first copy is best.
            service(service::Type::VolumeAccessibilityConstraints),
            Type::VolumeExpansion(online),
        ];
        let capabilities =
            capabilities.into_iter().map(|kind| PluginCapability { r#type: Some(kind) }).collect();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let ready = self.0.ready().await;
        if let Err(reason) = &ready {
            tracing::warn!(%reason, "not ready");
        }
        Ok(Response::new(ProbeResponse { ready: Some(ready.is_ok()) }))
    }
}
