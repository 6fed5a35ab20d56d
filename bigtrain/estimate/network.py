"""Seconds that collectives take: a latency for each hop, and bytes at a bandwidth that grows with their number.

    seconds       = launch + latency x hops + moved bytes / bandwidth(message)
    bandwidth(S)  = bus bandwidth / (1 + sqrt(ramp x bus bandwidth / S))
    bus bandwidth = the slower of the link inside a node and the network cards of the group's ranks in that node

The ramp is the time after which a transfer runs at half of its speed: the square root is what `nccl-tests` show between
a few and a few hundred megabytes. The few constants are those of `constants.py`, fitted to published curves.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from bigtrain.base import BigtrainError
from bigtrain.estimate.constants import FITTED, Constants
from bigtrain.estimate.devices import Device
from bigtrain.estimate.layout import Group

NETWORKS_GBIT = {
    "infiniband-ndr": 400.0, "infiniband-400": 400.0, "infiniband-hdr": 200.0, "infiniband-200": 200.0,
    "infiniband-edr": 100.0, "infiniband-100": 100.0, "infiniband-xdr": 800.0, "infiniband-800": 800.0,
    "roce-400": 400.0, "roce-200": 200.0, "roce-100": 100.0, "efa": 400.0, "efa-v3": 400.0, "efa-v2": 400.0,
    "efa-v1": 50.0, "omni-path-100": 100.0, "ethernet-400": 400.0, "ethernet-200": 200.0, "ethernet-100": 100.0,
    "ethernet-25": 25.0, "ethernet-10": 10.0,
}  # fmt: skip
"""Gbit/s of one device, one way. `efa-v1` is 400 Gbit/s for 8 devices (p4d), the later ones 3,200 (p5, p5en)."""


@dataclass(frozen=True)
class Interconnect:
    """The link between the devices of a node, and the network between nodes, as one device sees them."""

    link_gbs: float
    """GB/s of the link inside a node, one way."""
    network_gbs: float
    """GB/s of the network for each device, one way."""
    node_size: int
    """Devices of a node (or of a rack that one link connects)."""
    reduces_in_switch: bool = False
    """Whether the switch of the link adds numbers up (NVLink SHARP), so that an all-reduce moves half as much."""

    def all_reduce(self, size: float, group: Group, constants: Constants = FITTED) -> float:
        """Seconds to sum `size` bytes over a group, each rank having all of them before and after."""
        if group.size == 1 or size == 0:
            return 0.0
        gain = constants.switch_reduction_gain if self._reduces(group) else 1.0
        moved = 2 * (group.size - 1) / group.size * size
        return self._seconds(moved, size, group, 2 * math.log2(group.size), constants, gain)

    def all_gather(self, size: float, group: Group, constants: Constants = FITTED) -> float:
        """Seconds until each rank of a group has `size` bytes, of which it had its part."""
        if group.size == 1 or size == 0:
            return 0.0
        moved = (group.size - 1) / group.size * size
        hops = group.per_node - 1 + 2 * math.log2(group.nodes)
        return self._seconds(moved, size, group, hops, constants)

    def reduce_scatter(self, size: float, group: Group, constants: Constants = FITTED) -> float:
        """Seconds until each rank of a group has its part of the sum of `size` bytes."""
        return self.all_gather(size, group, constants)

    def all_to_all(self, size: float, group: Group, constants: Constants = FITTED) -> float:
        """Seconds until each rank of a group has sent each other one its part of `size` bytes."""
        if group.size == 1 or size == 0:
            return 0.0
        inside = Group(group.per_node, group.per_node)
        seconds = self._seconds((group.per_node - 1) / group.size * size, size, inside, 1.0, constants)
        if group.nodes == 1:
            return seconds
        card = self.network_gbs * 1e9 * constants.network_share
        return seconds + (group.size - group.per_node) / group.size * size / card

    def send(self, size: float, group: Group, constants: Constants = FITTED) -> float:
        """Seconds to send `size` bytes from one rank of a group to its neighbour."""
        if group.size == 1 or size == 0:
            return 0.0
        return self._seconds(size, size, group, 1.0, constants)

    def shared(self, contention: float) -> Interconnect:
        """The same as a step finds it, which shares the network with itself and others.

        Args:
            contention: how many times less bandwidth is left between nodes.
        """
        return replace(self, network_gbs=self.network_gbs / contention)

    def bus_bandwidth(self, group: Group, constants: Constants = FITTED) -> float:
        """Bytes per second that each rank sends in a ring of large messages, which `nccl-tests` call bus bandwidth."""
        link = self.link_gbs * 1e9 * constants.link_share
        if group.nodes == 1:
            return link
        cards = self.network_gbs * 1e9 * group.per_node * constants.network_share
        return min(link, cards) / (1 + constants.congestion * math.log2(group.nodes))

    def _reduces(self, group: Group) -> bool:
        return self.reduces_in_switch and group.nodes == 1 and group.size >= 4

    def _seconds(
        self, moved: float, size: float, group: Group, hops: float, constants: Constants, gain: float = 1.0
    ) -> float:
        inside = group.nodes == 1
        latency = constants.link_latency if inside else constants.network_latency
        ramp = constants.link_ramp if inside else constants.network_ramp
        bandwidth = self.bus_bandwidth(group, constants) * gain
        slower = 1 + math.sqrt(ramp * bandwidth / size)
        return constants.collective_launch + latency * hops + moved / bandwidth * slower


def interconnect(of: Device, network: str | None = None, node_size: int | None = None) -> Interconnect:
    """Return how devices of a kind are connected.

    Args:
        of: the device, whose link joins those of a node.
        network: a name in NETWORKS_GBIT, or Gbit/s for each device as a number. Default: the reference server's.
        node_size: devices of a node. Default: as many as the link joins.

    Raises:
        BigtrainError: there is no such network.
    """
    size = node_size or max(8 if of.linked_devices == 1 else of.linked_devices, 1)
    found = Interconnect(of.link_gbs, of.network_gbit / 8, size, of.generation in ("hopper", "blackwell"))
    if network is None:
        return found
    return replace(found, network_gbs=_gbit(network) / 8)


def _gbit(network: str) -> float:
    name = network.strip().lower()
    if name in NETWORKS_GBIT:
        return NETWORKS_GBIT[name]
    if (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:g|gbit|gbit/s|gbps)?", name)) and float(match[1]) > 0:
        return float(match[1])
    raise BigtrainError(
        f"there is no network {network!r}",
        found=network,
        wanted=", ".join(NETWORKS_GBIT),
        fix="take one of these, or give the Gbit/s of one device as a number, for example 400",
    )
