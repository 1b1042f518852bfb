//! Any bytes as a rule's answer: what decodes encodes, and decodes to the same again.
#![no_main]

use hooksieve_sdk::wire::{Decision, Payload};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|answer: &[u8]| {
    match Decision::decode(answer) {
        Ok(Ok(decision)) => {
            let encoded = decision.encode();
            assert_eq!(Decision::decode(&encoded), Ok(Ok(decision.clone())));
            for action in &decision.actions {
                // What a webhook is sent.
                if let Payload::Body(body) = &action.payload {
                    serde_json::to_string(body).unwrap();
                }
            }
        }
        Ok(Err(message)) => {
            let encoded = Decision::encode_error(&message);
            assert_eq!(Decision::decode(&encoded), Ok(Err(message)));
        }
        Err(error) => assert!(!error.message().is_empty()),
    }
});
