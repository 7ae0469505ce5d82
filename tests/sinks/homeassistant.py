"""Home Assistant's side of MQTT discovery, as far as streamd uses it: validation, entities and their states.

The rules are those of `homeassistant/components/mqtt` (schemas.py, discovery.py, binary_sensor.py, sensor.py, event.py,
image.py), read in November 2026. Home Assistant drops keys that it does not know; here they are errors, too.
Templates are rendered by Jinja, as in Home Assistant.
"""

from __future__ import annotations

import json
import re
from typing import Any

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tests.events.journals import until
from tests.sinks import brokers

TOPIC = re.compile(r"homeassistant/device/(?:(?P<node>[a-zA-Z0-9_-]+)/)?(?P<object>[a-zA-Z0-9_-]+)/config")
DEVICE_KEYS = {
    "identifiers", "connections", "manufacturer", "model", "model_id", "name", "hw_version", "serial_number",
    "sw_version", "via_device", "suggested_area", "configuration_url",
}  # fmt: skip
ORIGIN_KEYS = {"name", "sw_version", "support_url"}
SHARED = {"availability", "availability_mode", "availability_topic", "availability_template", "payload_available",
          "payload_not_available", "state_topic", "command_topic", "qos", "encoding"}  # fmt: skip
COMMON = {
    "platform", "unique_id", "name", "icon", "entity_category", "entity_picture", "enabled_by_default",
    "default_entity_id", "json_attributes_topic", "json_attributes_template", "availability", "availability_mode",
    "qos", "encoding",
}  # fmt: skip
KEYS = {
    "binary_sensor": {"device_class", "expire_after", "force_update", "off_delay", "payload_off", "payload_on",
                      "state_topic", "value_template"},
    "sensor": {"device_class", "expire_after", "force_update", "last_reset_value_template", "options",
               "suggested_display_precision", "state_class", "unit_of_measurement", "state_topic", "value_template"},
    "event": {"device_class", "event_types", "state_topic", "value_template"},
    "image": {"content_type", "image_encoding", "image_topic", "url_topic", "url_template"},
}  # fmt: skip
CLASSES = {
    "binary_sensor": {"connectivity", "door", "motion", "moving", "occupancy", "presence", "problem", "running"},
    "sensor": {"enum", "timestamp", "duration"},
    "event": {"doorbell", "button", "motion"},
}
STATE_CLASSES = {"measurement", "measurement_angle", "total", "total_increasing"}
ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined)


def _topic(value: Any) -> None:
    assert isinstance(value, str)
    assert 0 < len(value.encode()) <= 65_535
    assert not set(value) & set("\x00+#"), f"{value}: a state topic without wildcards"


def _known(what: str, entry: dict[str, Any], keys: set[str]) -> None:
    assert set(entry) <= keys, f"{what}: Home Assistant does not know {set(entry) - keys}"


def _availability(entry: dict[str, Any]) -> None:
    assert entry.get("availability_mode", "latest") in ("all", "any", "latest")
    for each in entry.get("availability", []):
        _known("availability", each, {"topic", "payload_available", "payload_not_available", "value_template"})
        _topic(each["topic"])


def _component(name: str, entry: dict[str, Any]) -> None:
    platform = entry["platform"]
    assert platform in KEYS
    if set(entry) == {"platform"}:
        return  # removes the entity
    _known(name, entry, COMMON | KEYS[platform])
    assert isinstance(entry["unique_id"], str), "required in a device's message"
    assert entry.get("name") is None or isinstance(entry["name"], str)
    assert entry.get("entity_category", "diagnostic") in ("config", "diagnostic")
    assert entry.get("icon", "mdi:x").startswith("mdi:")
    assert "device_class" not in entry or entry["device_class"] in CLASSES[platform]
    for key, value in entry.items():
        if key.endswith("_topic"):
            _topic(value)
        if key.endswith("_template"):
            ENVIRONMENT.parse(value)
    _availability(entry)
    if platform == "image":
        assert ("image_topic" in entry) != ("url_topic" in entry)
        assert not {"content_type", "url_topic"} <= set(entry)
        return
    _topic(entry["state_topic"])
    if platform == "event":
        assert all(isinstance(each, str) for each in entry["event_types"])
        assert entry["event_types"]
    if platform == "sensor":
        assert entry.get("state_class", "total") in STATE_CLASSES
        assert ("options" in entry) == (entry.get("device_class") == "enum")
        if "options" in entry:
            assert not {"state_class", "unit_of_measurement"} & set(entry), "not for an enumeration"
            assert entry["options"]


def validate(topic: str, message: dict[str, Any]) -> None:
    """Holds a device's discovery message against Home Assistant's rules."""
    assert TOPIC.fullmatch(topic), f"{topic}: characters that Home Assistant does not allow"
    _known(topic, message, {"device", "origin", "components"} | SHARED)
    device, origin = message["device"], message["origin"]
    _known("device", device, DEVICE_KEYS)
    assert device.get("identifiers") or device.get("connections")
    assert all(isinstance(value, str) for key, value in device.items() if key not in ("identifiers", "connections"))
    _known("origin", origin, ORIGIN_KEYS)
    assert isinstance(origin["name"], str)
    _availability(message)
    assert message["components"]
    for name, entry in message["components"].items():
        _component(name, entry)
    ids = [entry["unique_id"] for entry in message["components"].values() if "unique_id" in entry]
    assert len(ids) == len(set(ids))


class Entities:
    """What Home Assistant makes of the messages that it receives."""

    def __init__(self) -> None:
        self.devices: dict[str, dict[str, Any]] = {}
        """Discovery messages, by topic."""
        self._last: dict[str, bytes] = {}

    @classmethod
    def retained(cls, port: int) -> Entities:
        """What a Home Assistant that starts now learns from the broker."""
        found = cls()
        listener = brokers.Listener(port, "homeassistant/device/#")
        # What the broker keeps comes before what is published after the subscription.
        listener.client.publish("homeassistant/device/-/last/config", b"", qos=1)
        until(lambda: any("/-/last/" in topic for topic, _, _ in listener.messages))
        for topic, payload, _ in list(listener.messages):
            found.receive(topic, payload)
        listener.close()
        return found

    def receive(self, topic: str, payload: bytes) -> None:
        """Takes a message; one of discovery has to be valid."""
        if topic.startswith("homeassistant/device/"):
            if payload:
                message = json.loads(payload)
                validate(topic, message)
                self.devices[topic] = message
            else:
                self.devices.pop(topic, None)
        else:
            self._last[topic] = payload

    def components(self, name: str) -> set[str]:
        """Names of the components of the device that has this name."""
        return {
            component
            for message in self.devices.values()
            if message["device"]["name"] == name
            for component in message["components"]
        }

    def _entity(self, unique_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
        for message in self.devices.values():
            for entry in message["components"].values():
                if entry.get("unique_id") == unique_id:
                    return message, entry
        raise AssertionError(f"no entity {unique_id}")

    def states(self) -> dict[str, str]:
        """The state of every entity whose topic has a message, by unique id."""
        out = {}
        for message in self.devices.values():
            for entry in message["components"].values():
                payload = self._last.get(entry.get("state_topic", ""))
                if payload:
                    out[entry["unique_id"]] = self._state(entry, payload.decode())
        return out

    @staticmethod
    def _state(entry: dict[str, Any], value: str) -> str:
        for key in ("value_template", "json_attributes_template"):
            if key in entry:
                rendered = ENVIRONMENT.from_string(entry[key]).render(value=value, value_json=json.loads(value))
                if key == "json_attributes_template":
                    assert isinstance(json.loads(rendered), dict)
                else:
                    state = rendered
        state = state if "value_template" in entry else value
        if entry["platform"] == "binary_sensor":
            assert state in (entry.get("payload_on", "ON"), entry.get("payload_off", "OFF"), "None")
        elif entry["platform"] == "event":
            assert json.loads(state)["event_type"] in entry["event_types"]
        elif entry.get("device_class") == "enum":
            assert state in entry["options"]
        else:
            assert state == "None" or float(state) >= 0
        return state

    def image(self, unique_id: str) -> bytes | None:
        """The picture of an image entity."""
        return self._last.get(self._entity(unique_id)[1]["image_topic"])

    def available(self, unique_id: str) -> bool:
        """Whether Home Assistant shows the entity as available."""
        message, entry = self._entity(unique_id)
        where = entry if "availability" in entry else message
        seen = [self._last.get(each["topic"]) == b"online" for each in where.get("availability", [])]
        return all(seen) if where.get("availability_mode") == "all" or len(seen) == 1 else any(seen)
