"""The messages that Nomad and its device plugins exchange: names and numbers of their fields.

``go-plugin``'s own services and gRPC's health service come with them.
"""

from __future__ import annotations

from modal_nomad_gpu._protobuf import Codec, Field

DEVICE_PLUGIN = 3
SERVING, SERVICE_UNKNOWN = 1, 3

CODEC = Codec(
    {
        "Empty": {},
        # gRPC's health service.
        "HealthCheckRequest": {"service": Field(1, "string")},
        "HealthCheckResponse": {"status": Field(1, "enum")},
        # The base of every plugin of Nomad's.
        "PluginInfoResponse": {
            "type": Field(1, "enum"),
            "plugin_api_versions": Field(2, "string", many=True),
            "plugin_version": Field(3, "string"),
            "name": Field(4, "string"),
        },
        "ConfigSchemaResponse": {"spec": Field(1, "Spec")},
        "SetConfigRequest": {
            "msgpack_config": Field(1, "bytes"),
            "plugin_api_version": Field(3, "string"),
        },
        # What a plugin's configuration may look like.
        "Spec": {
            "object": Field(1, "Object"),
            "attr": Field(3, "Attr"),
            "block_list": Field(6, "BlockList"),
            "default": Field(9, "Default"),
            "literal": Field(10, "Literal"),
        },
        "Object": {"attributes": Field(1, "Spec", keyed=True)},
        "Attr": {
            "name": Field(1, "string"),
            "type": Field(2, "string"),
            "required": Field(3, "bool"),
        },
        "BlockList": {
            "name": Field(1, "string"),
            "min_items": Field(2, "uint64"),
            "max_items": Field(3, "uint64"),
            "nested": Field(4, "Spec"),
        },
        "Default": {"primary": Field(1, "Spec"), "default": Field(2, "Spec")},
        "Literal": {"value": Field(1, "string")},
        # Devices.
        "FingerprintResponse": {"device_group": Field(1, "DeviceGroup", many=True)},
        "DeviceGroup": {
            "vendor": Field(1, "string"),
            "device_type": Field(2, "string"),
            "device_name": Field(3, "string"),
            "devices": Field(4, "DetectedDevice", many=True),
            "attributes": Field(5, "Attribute", keyed=True),
        },
        "DetectedDevice": {
            "ID": Field(1, "string"),
            "healthy": Field(2, "bool"),
            "health_description": Field(3, "string"),
            "hw_locality": Field(4, "DeviceLocality"),
        },
        "DeviceLocality": {"pci_bus_id": Field(1, "string")},
        "Attribute": {
            "float_val": Field(1, "double"),
            "int_val": Field(2, "int64"),
            "string_val": Field(3, "string"),
            "bool_val": Field(4, "bool"),
            "unit": Field(5, "string"),
        },
        "ReserveRequest": {"device_ids": Field(1, "string", many=True)},
        "ReserveResponse": {"container_res": Field(1, "ContainerReservation")},
        "ContainerReservation": {
            "envs": Field(1, "string", keyed=True),
            "mounts": Field(2, "Mount", many=True),
        },
        "Mount": {
            "task_path": Field(1, "string"),
            "host_path": Field(2, "string"),
            "read_only": Field(3, "bool"),
        },
        # Statistics.
        "StatsRequest": {"collection_interval": Field(1, "Duration")},
        "Duration": {"seconds": Field(1, "int64"), "nanos": Field(2, "int32")},
        "StatsResponse": {"groups": Field(1, "DeviceGroupStats", many=True)},
        "DeviceGroupStats": {
            "vendor": Field(1, "string"),
            "type": Field(2, "string"),
            "name": Field(3, "string"),
            "instance_stats": Field(4, "DeviceStats", keyed=True),
        },
        "DeviceStats": {
            "summary": Field(1, "StatValue"),
            "stats": Field(2, "StatObject"),
            "timestamp": Field(3, "Duration"),
        },
        "StatObject": {
            "nested": Field(1, "StatObject", keyed=True),
            "attributes": Field(2, "StatValue", keyed=True),
        },
        "StatValue": {
            "int_numerator_val": Field(3, "Int64Value"),
            "int_denominator_val": Field(4, "Int64Value"),
            "string_val": Field(5, "StringValue"),
            "unit": Field(7, "string"),
            "desc": Field(8, "string"),
        },
        "Int64Value": {"value": Field(1, "int64")},
        "StringValue": {"value": Field(1, "string")},
    }
)
