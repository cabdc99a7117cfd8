"""Answers launches, one JSON document a line, with sev-snp-measure's digests."""
import json
import sys

from sevsnpmeasure import guest
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vmm_types import VMMType


def digest(launch):
    if launch["mode"] == "snp:ovmf-hash":
        return guest.calc_snp_ovmf_hash(launch["ovmf"])
    return guest.calc_launch_digest(
        SevMode.from_str(launch["mode"]),
        launch["vcpus"],
        launch["signature"],
        launch["ovmf"],
        launch["kernel"],
        launch["initrd"],
        launch["append"],
        int(launch["features"]),
        launch["ovmf_hash"],
        VMMType[launch["vmm"]],
        False,
        launch["svsm"],
        launch["vars_size"],
    )


for line in sys.stdin:
    try:
        answer = {"digest": digest(json.loads(line)).hex()}
    except Exception as error:  # whatever it is, it is the answer
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
