//! nginx in front of the engine, as most operators have it: with its defaults.

use crate::peers::{Absent, absent};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// An nginx of the test's own; it ends with it.
pub struct Nginx {
    child: Child,
    pub base: String,
    _folder: TempDir,
}

impl Nginx {
    /// One that passes everything on to `upstream`, an address with a port.
    ///
    /// # Errors
    /// When there is none on this machine, and the environment does not say that there must be.
    pub fn before(upstream: &str) -> Result<Self, Absent> {
        let program = ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx"];
        let Some(program) = program
            .iter()
            .find(|path| std::fs::exists(path).is_ok_and(|it| it))
        else {
            return Err(absent(
                "nginx is not here",
                "apt-get install nginx-light",
                "HOOKSIEVE_NEED_NGINX",
            ));
        };
        let folder = tempfile::tempdir().expect("there is room for a folder");
        // It is free now, and nobody else asks for it meanwhile.
        let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = free.local_addr().expect("it has an address");
        drop(free);
        let at = folder.path().display();
        let config = format!(
            "daemon off; master_process off; error_log {at}/error.log; pid {at}/pid;
             events {{ worker_connections 64; }}
             http {{
               access_log off; client_max_body_size 0; client_body_temp_path {at}/body;
               proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;
               server {{ listen {address}; location / {{ proxy_pass http://{upstream}; }} }}
             }}"
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, config).expect("the folder takes a file");
        let child = Command::new(program)
            .arg("-p")
            .arg(folder.path())
            .arg("-c")
            .arg(&file)
            .arg("-e")
            .arg(folder.path().join("error.log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx starts");
        for _ in 0..500 {
            if TcpStream::connect(address).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self {
            child,
            base: format!("http://{address}"),
            _folder: folder,
        })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
