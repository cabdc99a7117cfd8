//! A guest that never comes up, which says nothing of why.

use std::time::Duration;

use assay_launcher::plan::Accelerator;
use assay_supervisor::{Phase, Progress};
use assay_tee::BootMethod;
use tokio::sync::watch;
use tokio::time::timeout;

use super::verdict::Decision;

/// Ends if the guest's agent has not spoken within `limit`, and else never.
pub(super) async fn silence(
    mut progress: watch::Receiver<Progress>,
    limit: Duration,
    boot: BootMethod,
    accelerator: Accelerator,
) -> Decision {
    let spoken = progress.wait_for(|progress| progress.phase != Phase::Starting);
    // What the wait ends with keeps the progress from changing: it must not live on.
    let silent = timeout(limit, spoken).await.is_err();
    if silent {
        return Decision::Refused(sentence(limit, boot, accelerator));
    }
    // A guest that is gone has an end of its own.
    std::future::pending().await
}

/// What to look at.
fn sentence(limit: Duration, boot: BootMethod, accelerator: Accelerator) -> String {
    let firmware = match boot {
        BootMethod::DirectKernel => {
            "firmware stops without a word where the UKI is not the one of the hashes table"
        }
        BootMethod::Igvm => {
            "firmware stops without a word where it does not find the UKI of the IGVM file, or has \
             too little memory beside it (spec.machine.memory)"
        }
    };
    let machine = match accelerator {
        Accelerator::Tcg => "emulation is slow on a busy machine: give it more with",
        Accelerator::Kvm => {
            "and under a hypervisor that does not nest, KVM never runs a guest at all: see dmesg, \
             or try --accel tcg, or give it more with"
        }
    };
    format!(
        "the guest has not booted after {} s and is ended; see the last line of its console: \
         {firmware}; {machine} --boot-timeout-seconds",
        limit.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(7);

    #[tokio::test(start_paused = true)]
    async fn silence_ends_in_a_sentence_and_a_word_ends_the_wait() {
        let (sender, progress) = watch::channel(Progress::default());
        let (boot, tcg) = (BootMethod::Igvm, Accelerator::Tcg);
        let silent = silence(progress.clone(), LIMIT, boot, tcg).await;
        assert_eq!(silent, Decision::Refused(sentence(LIMIT, boot, tcg)));

        sender.send_modify(|progress| progress.phase = Phase::Booted);
        let spoken = silence(progress.clone(), LIMIT, boot, tcg);
        assert!(timeout(LIMIT * 9, spoken).await.is_err());
        sender.send_modify(|progress| progress.phase = Phase::Starting);

        // Whoever has heard the word does not keep the guest from the next one.
        let heard = tokio::spawn(silence(progress.clone(), LIMIT, boot, tcg));
        sender.send_modify(|progress| progress.phase = Phase::Booted);
        tokio::task::yield_now().await;
        let (done, ended) = std::sync::mpsc::channel();
        let next = std::thread::spawn(move || {
            sender.send_modify(|progress| progress.phase = Phase::Starting);
            done.send(sender).unwrap();
        });
        let sender = ended.recv_timeout(LIMIT).unwrap();
        next.join().unwrap();
        assert!(!heard.is_finished());
        heard.abort();

        drop(sender);
        let gone = silence(progress, LIMIT, boot, tcg);
        assert!(timeout(LIMIT * 9, gone).await.is_err());
    }

    #[test]
    fn the_sentence_says_what_to_look_at() {
        for (boot, accelerator, words) in [
            (
                BootMethod::DirectKernel,
                Accelerator::Tcg,
                ["hashes table", "busy machine", "after 7 s"],
            ),
            (
                BootMethod::Igvm,
                Accelerator::Kvm,
                [
                    "spec.machine.memory",
                    "--accel tcg",
                    "--boot-timeout-seconds",
                ],
            ),
        ] {
            let sentence = sentence(LIMIT, boot, accelerator);
            for words in words {
                assert!(sentence.contains(words), "{words}: {sentence}");
            }
        }
    }
}
