//! Standard input as a tie: what the demo starts ends with it, however it ends, because the kernel then closes the pipe
//! that the demo holds.

use std::io;
use std::process::exit;
use std::thread;

use tokio::sync::oneshot;

/// Waits for the end of standard input.
pub(crate) async fn ended() {
    let (ended, wait) = oneshot::channel();
    // Not tokio's stdin: its reader would hold up the end of the runtime.
    thread::spawn(move || {
        read_to_end();
        let _ = ended.send(());
    });
    let _ = wait.await;
}

/// Ends this process with standard input. At once and not by a drain: whoever could wait for one is gone.
pub(crate) fn end_with() {
    thread::spawn(|| {
        read_to_end();
        eprintln!("postern: standard input has ended, and this process with it");
        exit(0);
    });
}

fn read_to_end() {
    // An unreadable standard input has ended, too.
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
}
