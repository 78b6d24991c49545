"""Programs that we did not write, as servers in the world: nginx, iperf3, sshd."""

import base64
import hashlib
import subprocess

from netns import wait_for


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Nginx:
    """HTTP on 80, HTTPS with HTTP/2 on 443, HTTP/2 without TLS on 82; PUT to /upload/.

    `root` is the folder of what is served, `log` the access log: host, request, status, protocol.
    """

    def __init__(self, space, folder):
        self.root = folder / "www"
        self.log = folder / "access.log"
        self.certificate = folder / "server.crt"
        for name in ("www", "www/upload", "temp"):
            (folder / name).mkdir()
        (self.root / "index.html").write_text("<h1>It goes through.</h1>\n")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-days", "2", "-subj", "/CN=www.test", "-addext",
             "subjectAltName=DNS:www.test,DNS:v4.test,DNS:v6.test", "-keyout",
             folder / "server.key", "-out", self.certificate], check=True, capture_output=True)
        config = folder / "nginx.conf"
        config.write_text(f"""
user root;
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    log_format short '$host "$request" $status $server_protocol $request_length';
    access_log {self.log} short;
    client_body_temp_path {folder}/temp;
    client_max_body_size 0;
    sendfile on;
    ssl_certificate {self.certificate};
    ssl_certificate_key {folder}/server.key;
    server {{
        listen 80; listen [::]:80;
        listen 82 http2; listen [::]:82 http2;
        listen 443 ssl http2; listen [::]:443 ssl http2;
        root {self.root};
        location /upload/ {{ dav_methods PUT; }}
    }}
}}
""")
        self.process = space.popen("nginx", "-c", config, "-p", folder, "-e",
                                   folder / "error.log", stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        wait_for(lambda: space.listening(443), "nginx listens")

    def close(self):
        self.process.terminate()
        self.process.wait(10)


class Iperf3:
    """iperf3's server, for one client at a time."""

    def __init__(self, space, port=5201):
        self.process = space.popen("iperf3", "-s", "-p", port, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        wait_for(lambda: space.listening(port), "iperf3 listens")

    def close(self):
        self.process.terminate()
        self.process.wait(10)


PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5C"
                         "YII=")


def many_images(root, count):
    """many.html, a page of so many images, which ends as "images: " and how many were loaded."""
    for i in range(count):
        (root / f"{i}.png").write_bytes(PIXEL)
    images = "".join(f'<img src="/{i}.png">' for i in range(count))
    script = "onload = () => document.body.append('images: ' + " \
             "[...document.images].filter(i => i.naturalWidth > 0).length)"
    (root / "many.html").write_text(
        f"<!doctype html><meta charset=utf-8><body>{images}<script>{script}</script>")
