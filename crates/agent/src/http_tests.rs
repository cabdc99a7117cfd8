use std::net::TcpListener;
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection};

use super::*;

fn parse(response: &[u8]) -> Result<HttpResponse, HttpError> {
    receive(&mut BufReader::with_capacity(7, response))
}

#[test]
fn bodies_are_framed_by_length_or_by_chunks() {
    for (response, body) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhellotail",
            "hello",
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", ""),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n\
             3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nTrailer: x\r\n\r\n",
            "hello",
        ),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "ok",
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", ""),
    ] {
        assert_eq!(
            parse(response.as_bytes()).expect(response).body,
            body.as_bytes()
        );
    }
}

#[test]
fn status_and_headers_are_kept() {
    let response =
        parse(b"HTTP/1.1 401 Nope\r\nSet-Cookie: a=b; Path=/\r\nContent-Length: 0\r\n\r\n")
            .expect("response");
    assert_eq!(response.status, 401);
    assert_eq!(
        response.headers[0],
        ("Set-Cookie".to_owned(), "a=b; Path=/".to_owned())
    );
}

#[test]
fn malformed_responses_are_refused() {
    let head = "HTTP/1.1 200 OK\r\n";
    for rest in [
        "\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "Content-Length: +5\r\n\r\nhello",
        "Content-Length: -1\r\n\r\n",
        "Content-Length: \r\n\r\n",
        "Content-Length: 99999999999999999999999\r\n\r\n",
        "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    ] {
        assert!(
            matches!(
                parse(format!("{head}{rest}").as_bytes()),
                Err(HttpError::Malformed { .. })
            ),
            "{rest:?}"
        );
    }
    assert!(matches!(
        parse(b"SSH-2.0\r\n\r\n"),
        Err(HttpError::Malformed { .. })
    ));
}

#[test]
fn truncated_responses_are_refused() {
    let whole: &[u8] =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    for end in 0..whole.len() {
        assert!(
            matches!(parse(&whole[..end]), Err(HttpError::Receive(_))),
            "{end}"
        );
    }
    assert!(parse(whole).is_ok());
}

#[test]
fn endless_responses_are_refused() {
    let too_large =
        |response: &str| matches!(parse(response.as_bytes()), Err(HttpError::TooLarge { .. }));
    assert!(too_large(&format!(
        "HTTP/1.1 200 OK\r\nX: {}\r\n\r\n",
        "x".repeat(MAX_HEAD)
    )));
    assert!(too_large(&format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
        MAX_BODY + 1
    )));
    let chunk = format!("{:x}\r\n{}\r\n", MAX_BODY / 2, "x".repeat(MAX_BODY / 2));
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert!(too_large(&format!(
        "{head}{chunk}{chunk}1\r\nx\r\n0\r\n\r\n"
    )));
    assert!(too_large(&format!(
        "{head}1;{}",
        "x".repeat(MAX_CHUNK_LINE)
    )));
}

struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

fn authority() -> Authority {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).expect("certificate").pem();
    Authority { params, key, pem }
}

/// A server of one request, with a certificate of `authority` for `name`;
/// returns its address and, joined, the request it received.
fn serve(
    authority: &Authority,
    name: &str,
    response: &'static str,
) -> (SocketAddr, thread::JoinHandle<io::Result<String>>) {
    let key = KeyPair::generate().expect("key");
    let issuer = Issuer::from_params(&authority.params, &authority.key);
    let certificate = CertificateParams::new(vec![name.to_owned()])
        .and_then(|params| params.signed_by(&key, &issuer))
        .expect("certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("configuration");
    let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
    let address = listener.local_addr().expect("address");
    let server = thread::spawn(move || {
        let (socket, _) = listener.accept()?;
        let connection = ServerConnection::new(Arc::new(config)).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, socket);
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"ping") && stream.read(&mut byte)? == 1 {
            request.push(byte[0]);
        }
        stream.write_all(response.as_bytes())?;
        stream.conn.send_close_notify();
        stream.flush()?;
        String::from_utf8(request).map_err(io::Error::other)
    });
    (address, server)
}

fn ping() -> HttpRequest {
    HttpRequest {
        method: "POST",
        path: "/kbs/v0/auth".to_owned(),
        headers: vec![("Cookie", "a=b".to_owned())],
        body: b"ping".to_vec(),
    }
}

fn client(url: &str, addresses: Vec<SocketAddr>, ca: &str) -> Client {
    Client::new(Endpoint::new(url, addresses, ca).expect("endpoint")).expect("client")
}

const PONG: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong";

#[test]
fn a_server_that_proves_itself_is_asked_once() {
    let authority = authority();
    let (address, server) = serve(&authority, "broker.test", PONG);
    let dead = TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("address");
    let client = client(
        "https://broker.test:8443/base/",
        vec![dead, address],
        &authority.pem,
    );
    let response = client.send(&ping()).expect("response");
    assert_eq!(
        (response.status, response.body.as_slice()),
        (200, b"pong".as_slice())
    );
    assert_eq!(
        server.join().expect("server").expect("request"),
        "POST /base/kbs/v0/auth HTTP/1.1\r\nHost: broker.test:8443\r\nConnection: close\r\n\
         Content-Length: 4\r\nCookie: a=b\r\n\r\nping"
    );
}

#[test]
fn a_server_with_another_name_or_another_authority_hears_no_request() {
    let (ours, theirs) = (authority(), authority());
    for (ca, name) in [(&ours, "other.test"), (&theirs, "broker.test")] {
        let (address, server) = serve(ca, name, PONG);
        let error = client("https://broker.test", vec![address], &ours.pem)
            .send(&ping())
            .expect_err("not the server");
        assert!(matches!(error, HttpError::Connect { .. }), "{error:?}");
        assert!(
            server.join().expect("server").is_err(),
            "the handshake fails"
        );
    }
}

#[test]
fn requests_cannot_be_split() {
    let authority = authority();
    let address = SocketAddr::from(([127, 0, 0, 1], 9));
    let client = client("https://broker.test", vec![address], &authority.pem);
    let header = |name: &'static str, value: &str| HttpRequest {
        headers: vec![(name, value.to_owned())],
        ..ping()
    };
    for request in [
        HttpRequest {
            path: "/a b".to_owned(),
            ..ping()
        },
        HttpRequest {
            path: "a".to_owned(),
            ..ping()
        },
        header("Cookie", "a\r\nX: y"),
        header("X: y\r\nCookie", "a"),
        header("", "a"),
    ] {
        assert!(
            matches!(client.send(&request), Err(HttpError::Request { .. })),
            "{request:?}"
        );
    }
}

#[test]
fn urls_are_https_with_a_host() {
    let ca = authority().pem;
    let address = vec![SocketAddr::from(([127, 0, 0, 1], 9))];
    for url in [
        "https://a",
        "https://a:8443",
        "https://a.b/c",
        "https://10.0.0.1",
        "https://[::1]:1",
    ] {
        assert!(Endpoint::new(url, address.clone(), &ca).is_ok(), "{url}");
    }
    for url in [
        "http://a",
        "a",
        "https://",
        "https:///a",
        "https://:1",
        "https://a:x",
        "https://a:99999",
        "https://u@a",
        "https://a?b",
        "https://a/b#c",
        "https://a b",
        "https://a/\r\nX: y",
    ] {
        assert_eq!(
            Endpoint::new(url, address.clone(), &ca),
            Err(EndpointError::Url {
                got: url.to_owned()
            })
        );
    }
    assert_eq!(
        Endpoint::new("https://a", vec![], &ca),
        Err(EndpointError::NoAddress)
    );
    for ca in [
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        assert_eq!(
            Endpoint::new("https://a", address.clone(), ca),
            Err(EndpointError::Authorities)
        );
    }
}
