"""A service under systemd on a real Debian, installed as an administrator would."""

import pytest

UNIT = """\
[Unit]
Description=An HTTP server for a test

[Service]
ExecStart=/usr/bin/python3 -m http.server --directory /srv/www 8080
Restart=on-failure
RestartSec=100ms
"""


@pytest.mark.vm(image="debian-12", hardware="small")
def test_systemd_restarts_a_killed_service(vm_instance):
    """A service that is killed is started again by systemd."""
    vm = vm_instance
    vm.check_output("mkdir -p /srv/www && echo hello > /srv/www/index.html")
    vm.write_text("/etc/systemd/system/www.service", UNIT)
    vm.check_output("systemctl daemon-reload && systemctl start www")
    vm.wait_until("curl -sf http://localhost:8080/")
    before = vm.check_output("systemctl show -p MainPID --value www")
    vm.check_output(["kill", "-9", before])
    vm.wait_until(f"pid=$(systemctl show -p MainPID --value www); [ $pid != 0 ] && [ $pid != {before} ]")
    vm.wait_until("curl -sf http://localhost:8080/")
