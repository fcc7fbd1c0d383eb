"""A service under systemd on a real Debian, installed as an administrator would."""

import pytest

SCRIPT = """\
#!/bin/sh
while :; do date +%s.%N > /run/heartbeat; sleep 0.2; done
"""
UNIT = """\
[Unit]
Description=A heartbeat

[Service]
ExecStart=/usr/local/bin/heartbeat
Restart=always
RestartSec=100ms

[Install]
WantedBy=multi-user.target
"""


@pytest.mark.vm(image="debian-12", hardware="small")
def test_systemd_restarts_a_killed_service(vm_instance):
    """A service that is killed is started again by systemd."""
    vm = vm_instance
    vm.write_text("/usr/local/bin/heartbeat", SCRIPT)
    vm.write_text("/etc/systemd/system/heartbeat.service", UNIT)
    vm.check_output("chmod +x /usr/local/bin/heartbeat && systemctl enable --now heartbeat")
    vm.wait_until("test -s /run/heartbeat")
    before = vm.check_output("systemctl show -p MainPID --value heartbeat")
    vm.check_output(["kill", "-9", before])
    vm.wait_until(f"pid=$(systemctl show -p MainPID --value heartbeat); [ $pid -gt 0 -a $pid -ne {before} ]")
    assert vm.check_output("systemctl show -p NRestarts --value heartbeat") == "1"
