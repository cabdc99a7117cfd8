//! COCONUT-SVSM's attestation proxy and a broker, over HTTP: the requests that `aproxy`
//! makes of a base URL, with the cookies that it keeps.

use assay_protocol::jwe::{Curve, Jwe, RecipientKey, TeePublicKey};
use assay_protocol::messages::{Challenge, RuntimeData};
use assay_protocol::svsm;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use reqwest::header::{COOKIE, SET_COOKIE};
use serde_json::json;

use super::*;

/// A proxy with its base URL and its one cookie.
struct Proxy {
    client: reqwest::Client,
    url: String,
    cookie: Option<String>,
}

impl Proxy {
    async fn send(&mut self, method: reqwest::Method, path: &str, body: &str) -> (u16, String) {
        let url = format!("{}/kbs/v0/{path}", self.url);
        let mut request = self.client.request(method, url).body(body.to_owned());
        if let Some(cookie) = &self.cookie {
            request = request.header(COOKIE, cookie);
        }
        let response = request.send().await.unwrap();
        if let Some(cookie) = response.headers().get(SET_COOKIE) {
            let cookie = cookie.to_str().unwrap();
            // Kept for the path of the request, and sent back in the clear.
            assert!(cookie.contains("; Path=/svsm;"), "{cookie}");
            assert!(!cookie.contains("Secure"), "{cookie}");
            self.cookie = cookie.split(';').next().map(str::to_owned);
        }
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn post(&mut self, path: &str, body: &str) -> (u16, String) {
        self.send(reqwest::Method::POST, path, body).await
    }

    async fn get(&mut self, path: &str) -> (u16, String) {
        self.send(reqwest::Method::GET, path, "").await
    }
}

#[tokio::test]
async fn a_proxy_gets_its_guest_s_secret_over_http() {
    let config = format!("{FILES}\nsvsmListen = \"127.0.0.1:0\"");
    let world = start(directory(&config));
    let address = world.broker.svsm_address.unwrap();
    let instance = world.instance();
    let document = instance.encode().unwrap();
    let mut proxy = Proxy {
        client: reqwest::Client::builder().no_proxy().build().unwrap(),
        url: format!("http://{address}/svsm/{}", svsm::encode_document(&document)),
        cookie: None,
    };
    let (status, challenge) = proxy
        .post(
            "auth",
            r#"{"version":"0.4.0","tee":"snp","extra-params":""}"#,
        )
        .await;
    assert_eq!(status, 200, "{challenge}");
    let challenge: Challenge = serde_json::from_str(&challenge).unwrap();

    let guest = fixtures::launch(1, &instance);
    let key = RecipientKey::generate_on(Curve::P521).unwrap();
    let bound = RuntimeData {
        nonce: challenge.nonce,
        tee_pubkey: TeePublicKey::new(&key.public_key().unwrap()),
    };
    let evidence = fixtures::evidence(&guest, svsm::report_data(&bound).unwrap());
    let body = json!({
        "init-data": null,
        "runtime-data": bound,
        "tee-evidence": {
            "primary_evidence": {
                "snp-report": BASE64_STANDARD.encode(&evidence.report),
                "certs-buf": BASE64_STANDARD.encode(&evidence.certificates),
            },
            "additional_evidence": "",
        },
    });
    let (status, token) = proxy.post("attest", &body.to_string()).await;
    assert_eq!(status, 200, "{token}");
    let (status, jwe) = proxy.get("resource/default/sample/test").await;
    assert_eq!(status, 200, "{jwe}");
    let jwe: Jwe = serde_json::from_str(&jwe).unwrap();
    assert_eq!(*jwe.decrypt(&key).unwrap(), fixtures::SECRET_VALUE);

    // There is nothing else to ask for, and nothing usual.
    let (status, _) = proxy.get("resource/shop/web/greeting").await;
    assert_eq!(status, 404);
    let usual = format!("http://{address}/kbs/v0/auth");
    let usual = proxy.client.post(usual).send().await.unwrap();
    assert_eq!(usual.status(), 404);
    assert!(!world.get("/svsm/e30/kbs/v0/auth").await.contains("nonce"));
    // What is released is in the log, whoever asked for it.
    let log = fs::read(world.path("state/audit.jsonl")).unwrap();
    assert_eq!(verify_log(&log[..]).unwrap().lines, 1);
    assert!(
        String::from_utf8(log)
            .unwrap()
            .contains("shop/web/greeting")
    );
}
