"""SOCKS5 servers that we did not write, each started in a namespace and within its own limits."""

import os
import subprocess

from netns import url_host, wait_for


class Proxy:
    """What a test needs to know of a proxy: its URL and its limits."""

    def __init__(self, name, host, port, **limits):
        self.name = name
        self.host, self.port = host, port
        self.credentials = limits.get("credentials", "")  # USER:PASSWORD
        self.udp_max = limits.get("udp_max", 0)  # largest datagram it carries; 0: no UDP
        self.tells = limits.get("tells", True)  # reports a refused CONNECT before it says yes
        self.codes = limits.get("codes", True)  # ... and by a reply code, not only by closing
        self.half_close = limits.get("half_close", True)  # one FIN does not end both directions
        self.process = None

    @property
    def url(self):
        who = self.credentials + "@" if self.credentials else ""
        return f"socks5://{who}{url_host(self.host)}:{self.port}"

    def start(self, space, *argv, **kwargs):
        kwargs.setdefault("stdout", subprocess.DEVNULL)
        kwargs.setdefault("stderr", subprocess.DEVNULL)
        self.process = space.popen(*argv, **kwargs)
        wait_for(lambda: space.listening(self.port), f"{self.name} listens on {self.port}")
        return self

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)


def start_dante(lab, folder, port=1081):
    config = folder / "danted.conf"
    config.write_text(f"""
logoutput: {folder}/danted.log
internal.protocol: ipv4 ipv6
external.protocol: ipv4 ipv6
internal: {lab.proxy4} port = {port}
internal: {lab.proxy6} port = {port}
external: {lab.mid_world_link}
socksmethod: none
clientmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 0/0 to: 0/0 }}
socks pass {{ from: 0/0 to: 0/0 }}
""")
    proxy = Proxy("dante", lab.proxy4, port, udp_max=60000)
    return proxy.start(lab.mid, "danted", "-f", config, "-N", "1")


def start_microsocks(lab, _folder, port=1082, credentials=""):
    proxy = Proxy("microsocks", lab.proxy4, port, credentials=credentials, half_close=False)
    login = []
    if credentials:
        user, password = credentials.split(":")
        login = ["-u", user, "-P", password]
    return proxy.start(lab.mid, "microsocks", "-i", "::", "-p", port, *login)


def make_keys(folder):
    """A host key, a user key that may log in, and sshd's configuration without its port."""
    for name in ("host", "user"):
        if not (folder / name).exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name],
                           check=True)
    (folder / "known").write_text("* " + (folder / "host.pub").read_text())


def start_sshd(space, folder, port):
    """Needs no PAM and nothing of the machine's own configuration."""
    make_keys(folder)
    os.makedirs("/run/sshd", exist_ok=True)
    config = folder / f"sshd-{port}.conf"
    config.write_text(f"""
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UseDNS no
MaxStartups 200
MaxSessions 200
""")
    server = Proxy("sshd", None, port)
    return server.start(space, "/usr/sbin/sshd", "-D", "-e", "-f", config)


def ssh_command(folder, port):
    return ["ssh", "-F", "none", "-i", folder / "user", "-p", port, "-o", "BatchMode=yes",
            "-o", f"UserKnownHostsFile={folder}/known", "-o", "GlobalKnownHostsFile=none",
            "-o", "ExitOnForwardFailure=yes", "-o", "LogLevel=ERROR"]


def start_ssh_d(lab, folder, port=1083):
    """ssh -D answers a refusal by closing, and has no UDP."""
    sshd = start_sshd(lab.mid, folder, 2222)
    proxy = Proxy("ssh-D", lab.proxy4, port, codes=False)
    proxy.start(lab.mid, *ssh_command(folder, 2222), "-N", "-D", f"{lab.proxy4}:{port}",
                "root@127.0.0.1")
    close_client = proxy.close
    proxy.close = lambda: (close_client(), sshd.close())
    return proxy


def start_shadowsocks(lab, _folder, port=1084):
    """ss-local says yes before anything is connected, so it cannot tell of a refusal."""
    secret = ["-k", "tests-only", "-m", "chacha20-ietf-poly1305"]
    server = Proxy("ss-server", None, 8388)
    server.start(lab.mid, "ss-server", "-s", "127.0.0.1", "-p", 8388, "-u", *secret)
    proxy = Proxy("ss-local", lab.proxy4, port, udp_max=1400, tells=False, half_close=False)
    proxy.start(lab.mid, "ss-local", "-s", "127.0.0.1", "-p", 8388, "-b", lab.proxy4, "-l", port,
                "-u", *secret)
    close_client = proxy.close
    proxy.close = lambda: (close_client(), server.close())
    return proxy


INDEPENDENT = {
    "dante": start_dante,
    "microsocks": start_microsocks,
    "ssh-D": start_ssh_d,
    "ss-local": start_shadowsocks,
}
