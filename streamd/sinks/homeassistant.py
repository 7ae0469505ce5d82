"""Home Assistant's device-based MQTT discovery: one retained message per camera, and one for the daemon.

Keys and rules follow Home Assistant's documentation (https://www.home-assistant.io/integrations/mqtt/) and its schemas
in `homeassistant/components/mqtt`; `tests/sinks/homeassistant.py` holds every message against them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import Field

from streamd import __version__
from streamd.analysis.rules import Change
from streamd.flow.settings import StreamSettings
from streamd.settings import Pattern, Settings
from streamd.types import StreamState

ONLINE, OFFLINE = "online", "offline"
"""Home Assistant's default payloads of availability."""
EVENT_TYPES = [f"{'line' if change == 'crossed' else 'zone'}_{change}" for change in get_args(Change)]
Topic = Annotated[
    str,
    Field(pattern=r"^[^+#\x00-\x20/]+(/[^+#\x00-\x20/]+)*$", max_length=128),
    Pattern("expected words joined by slashes, without spaces, + and #"),
]


class HomeAssistantSettings(Settings):
    """Home Assistant's MQTT discovery. `{}` enables it with the defaults of Home Assistant."""

    prefix: Topic = Field("homeassistant", description="Discovery prefix that is set in Home Assistant.")
    status_topic: Topic = Field(
        "homeassistant/status",
        description="Topic of Home Assistant's birth message. When it arrives, discovery is published again.",
    )


def escape(name: str) -> str:
    """A name in the characters that Home Assistant allows in discovery topics; different names stay different."""
    return name.replace("_", "_5F").replace(".", "_2E")


class Discovery:
    """The discovery messages of one daemon.

    Args:
        settings: prefix.
        node: name of the daemon.
        base: prefix of the daemon's own topics.
    """

    def __init__(self, settings: HomeAssistantSettings, node: str, base: str) -> None:
        self._node, self._base = node, base
        self._id = f"streamd_{node}"
        self._folder = f"{settings.prefix}/device/{escape(self._id)}"

    @property
    def filter(self) -> str:
        """Matches the topics of all messages of this daemon, also those of streams that it does not have any more."""
        return f"{self._folder}/+/config"

    def owns(self, topic: str) -> bool:
        """Whether the topic matches `filter`."""
        return topic.startswith(f"{self._folder}/") and topic.endswith("/config")

    def messages(self, streams: Sequence[StreamSettings]) -> dict[str, dict[str, Any]]:
        """All messages, by topic."""
        out = {f"{self._folder}/daemon/config": self._daemon()}
        for stream in streams:
            out[f"{self._folder}/stream_{escape(stream.id)}/config"] = self._camera(stream)
        return out

    def _origin(self) -> dict[str, str]:
        return {"name": "streamd", "sw_version": __version__}

    def _daemon(self) -> dict[str, Any]:
        return {
            "device": {
                "identifiers": [self._id],
                "name": f"streamd {self._node}",
                "manufacturer": "streamd",
                "model": "Video analytics daemon",
                "sw_version": __version__,
            },
            "origin": self._origin(),
            "components": {
                "connection": {
                    "platform": "binary_sensor",
                    "unique_id": f"{self._id}_connection",
                    "name": "Connection",
                    "device_class": "connectivity",
                    "entity_category": "diagnostic",
                    "state_topic": f"{self._base}/availability",
                    "payload_on": ONLINE,
                    "payload_off": OFFLINE,
                }
            },
        }

    def _camera(self, stream: StreamSettings) -> dict[str, Any]:
        here, id_ = f"{self._base}/streams/{stream.id}", f"{self._id}_{stream.id}"
        daemon = {"topic": f"{self._base}/availability"}
        components: dict[str, dict[str, Any]] = {
            "state": {
                "platform": "sensor",
                "unique_id": f"{id_}_state",
                "name": "State",
                "device_class": "enum",
                "options": [state.lower() for state in get_args(StreamState)],
                "entity_category": "diagnostic",
                "state_topic": f"{here}/status",
                "value_template": "{{ value_json.state | lower }}",
                # Told while the camera itself is not available, too.
                "availability": [daemon],
            }
        }
        for zone in stream.zones:
            components |= _zone(zone.name, here, id_)
        for line in stream.lines:
            for direction in line.directions:
                components |= _line(line.name, direction, here, id_)
        if stream.has_snapshots:
            components["snapshot"] = {
                "platform": "image",
                "unique_id": f"{id_}_snapshot",
                "name": "Last event",
                "content_type": "image/jpeg",
                "image_topic": f"{here}/snapshot",
                "availability": [daemon],
            }
        if stream.zones or stream.lines:
            components["event"] = {
                "platform": "event",
                "unique_id": f"{id_}_event",
                "name": "Event",
                "event_types": EVENT_TYPES,
                "state_topic": f"{here}/events",
                "value_template": "{{ dict(value_json.data, event_type=value_json.data.type, event_id=value_json.id) "
                "| tojson }}",
            }
        return {
            "device": {
                "identifiers": [id_],
                "name": stream.id,
                "manufacturer": "streamd",
                "model": "Camera",
                "via_device": self._id,
                "sw_version": __version__,
            },
            "origin": self._origin(),
            "availability": [daemon, {"topic": f"{here}/availability"}],
            "availability_mode": "all",
            "components": components,
        }


def _zone(name: str, here: str, id_: str) -> dict[str, dict[str, Any]]:
    counts, zone = f"{here}/counts", f"value_json.zones['{name}']"
    occupancy = f"{zone}.occupancy"
    return {
        f"zone_{escape(name)}_occupied": {
            "platform": "binary_sensor",
            "unique_id": f"{id_}_zone_{name}_occupied",
            "name": name,
            "device_class": "occupancy",
            "state_topic": counts,
            "value_template": f"{{{{ None if {occupancy} is none else 'ON' if {occupancy} > 0 else 'OFF' }}}}",
        },
        f"zone_{escape(name)}_count": {
            "platform": "sensor",
            "unique_id": f"{id_}_zone_{name}_count",
            "name": f"{name} count",
            "icon": "mdi:counter",
            "state_class": "measurement",
            "state_topic": counts,
            "value_template": f"{{{{ {occupancy} }}}}",
            "json_attributes_topic": counts,
            "json_attributes_template": f"{{{{ {zone}.labels | tojson }}}}",
        },
    }


def _line(name: str, direction: str, here: str, id_: str) -> dict[str, dict[str, Any]]:
    counts, crossings = f"{here}/counts", f"value_json.lines['{name}'].crossings['{direction}']"
    return {
        f"line_{escape(name)}_{escape(direction)}": {
            "platform": "sensor",
            "unique_id": f"{id_}_line_{name}_{direction}",
            "name": f"{name} {direction}",
            "icon": "mdi:counter",
            "state_class": "total_increasing",
            "state_topic": counts,
            "value_template": f"{{{{ {crossings}.values() | sum }}}}",
            "json_attributes_topic": counts,
            "json_attributes_template": f"{{{{ {crossings} | tojson }}}}",
        }
    }


def transition(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any] | None:
    """The message to publish before `new`, so that Home Assistant removes the entities that are gone.

    Args:
        old: what was published before under the same topic.
        new: what is to be published.

    Returns:
        `new` with the platform alone for each component that is gone; None if none is.
    """
    gone = {
        name: {"platform": each["platform"]}
        for name, each in old.get("components", {}).items()
        if name not in new["components"] and isinstance(each, Mapping) and "platform" in each
    }
    return {**new, "components": {**new["components"], **gone}} if gone else None
