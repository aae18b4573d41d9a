//! A client's signed word on who it is (RFC 7523), for programs that act for themselves.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::json;

/// How long it holds.
const LIFETIME_S: u64 = 300;

/// A signed assertion. `key` is a private key in PEM (PKCS #8): P-256 signs with ES256, RSA with RS256.
///
/// # Errors
/// Why the key can't be used; nothing of the key is in it.
pub(super) fn signed(key: &str, client: &str, audience: &str, now_s: u64) -> Result<String, String> {
    let der = decoded(key)?;
    let random = SystemRandom::new();
    let mut id = [0; 16];
    random.fill(&mut id).map_err(|_| "there is no source of chance".to_owned())?;
    let claims = json!({
        "iss": client, "sub": client, "aud": audience,
        "iat": now_s, "exp": now_s.saturating_add(LIFETIME_S), "jti": URL_SAFE_NO_PAD.encode(id),
    });
    let message = |algorithm: &str| {
        let header = json!({"alg": algorithm, "typ": "JWT"}).to_string();
        format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()))
    };
    let (message, signature) =
        if let Ok(key) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &random) {
            let message = message("ES256");
            let signature = key.sign(&random, message.as_bytes()).map_err(|_| "signing failed".to_owned())?;
            (message, signature.as_ref().to_vec())
        } else if let Ok(key) = RsaKeyPair::from_pkcs8(&der) {
            let message = message("RS256");
            let mut signature = vec![0; key.public().modulus_len()];
            key.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature)
                .map_err(|_| "signing failed".to_owned())?;
            (message, signature)
        } else {
            return Err(
                "the private key must be P-256 or RSA, as PKCS #8 in PEM (`BEGIN PRIVATE KEY`)".to_owned()
            );
        };
    Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

fn decoded(pem: &str) -> Result<Vec<u8>, String> {
    let inner = pem.split("-----BEGIN PRIVATE KEY-----").nth(1);
    let inner = inner.and_then(|rest| rest.split("-----END PRIVATE KEY-----").next());
    let text: String = inner.unwrap_or_default().chars().filter(|c| !c.is_whitespace()).collect();
    match STANDARD.decode(text) {
        Ok(der) if !der.is_empty() => Ok(der),
        _ => Err("the private key is not PEM with `BEGIN PRIVATE KEY`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ring::signature::{ECDSA_P256_SHA256_FIXED, KeyPair, UnparsedPublicKey};
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_word_is_signed_with_the_key_that_was_given() {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pem =
            format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(&pkcs8));
        let token = signed(&pem, "me", "https://as", 1_000).unwrap();
        let (message, signature) = token.rsplit_once('.').unwrap();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_key().as_ref());
        public.verify(message.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
        let claims = URL_SAFE_NO_PAD.decode(message.split('.').nth(1).unwrap()).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(
            (&claims["iss"], &claims["aud"], &claims["exp"]),
            (&json!("me"), &json!("https://as"), &json!(1_300))
        );
    }

    proptest! {
        #[test]
        fn what_is_no_key_is_refused(text in ".{0,80}") {
            prop_assert!(signed(&text, "c", "a", 0).is_err());
            let pem = format!("-----BEGIN PRIVATE KEY-----{text}-----END PRIVATE KEY-----");
            prop_assert!(signed(&pem, "c", "a", 0).is_err());
        }
    }
}
