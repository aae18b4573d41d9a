//! TLS over a connection where its address wants it, in builds that have TLS; else nothing.

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

#[cfg(feature = "tls")]
mod with {
    use std::sync::Arc;

    use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, MaybeHttpsStream};
    use rustls::crypto::{CryptoProvider, ring};
    use rustls::{ClientConfig, RootCertStore};

    use super::{TcpStream, TokioIo};

    pub(crate) type Settings = Arc<ClientConfig>;
    pub(crate) type Over<C> = HttpsConnector<C>;
    pub(crate) type Stream<S> = MaybeHttpsStream<S>;

    /// By the embedder's choice of cryptography, else by ring. Where no certificate will be looked at, none is loaded
    /// from disk.
    pub(crate) fn settings(is_secure: bool) -> Result<Settings, rustls::Error> {
        let ring = || Arc::new(ring::default_provider());
        let provider = CryptoProvider::get_default().cloned().unwrap_or_else(ring);
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = match is_secure {
            true => builder.try_with_platform_verifier()?,
            false => builder.with_root_certificates(RootCertStore::empty()),
        };
        let mut settings = builder.with_no_client_auth();
        settings.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(settings))
    }

    pub(crate) fn over<C>(connector: C, settings: &Settings) -> Over<C> {
        (connector, Arc::clone(settings)).into()
    }

    pub(crate) fn plain(tcp: TokioIo<TcpStream>) -> Stream<TokioIo<TcpStream>> {
        MaybeHttpsStream::Http(tcp)
    }
}

#[cfg(not(feature = "tls"))]
mod with {
    use std::convert::Infallible;

    use super::{TcpStream, TokioIo};

    pub(crate) struct Settings;
    pub(crate) type Over<C> = C;
    pub(crate) type Stream<S> = S;

    pub(crate) fn settings(_is_secure: bool) -> Result<Settings, Infallible> {
        Ok(Settings)
    }

    pub(crate) fn over<C>(connector: C, _settings: &Settings) -> Over<C> {
        connector
    }

    pub(crate) fn plain(tcp: TokioIo<TcpStream>) -> Stream<TokioIo<TcpStream>> {
        tcp
    }
}

pub(super) use with::{Over, Settings, Stream, over, plain, settings};
