"""etcd's messages (API v3, package `etcdserverpb`), as far as this client uses them.

Declared here instead of generated: generated modules of two libraries clash in protobuf's global
pool as soon as both name a file `rpc.proto`, and each demands a range of protobuf versions. These
live in a pool of their own and fit every protobuf since 4.22. On the wire only the numbers count:
enumerations are declared as the integers that they are sent as.

Source of the numbers: etcd's `rpc.proto`, `kv.proto` and `auth.proto`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

Message: TypeAlias = Any
"""An instance of one of the classes below, which are made at run time."""

_PACKAGE = "pyvxlan.etcd"
_FIELDS: Mapping[str, str] = {
    "ResponseHeader": "1 cluster_id uint64, 2 member_id uint64, 3 revision int64, "
    "4 raft_term uint64",
    "KeyValue": "1 key bytes, 2 create_revision int64, 3 mod_revision int64, 4 version int64, "
    "5 value bytes, 6 lease int64",
    "Event": "1 type int32, 2 kv KeyValue",
    "RangeRequest": "1 key bytes, 2 range_end bytes, 3 limit int64, 4 revision int64, "
    "7 serializable bool, 8 keys_only bool, 9 count_only bool",
    "RangeResponse": "1 header ResponseHeader, 2 kvs *KeyValue, 3 more bool, 4 count int64",
    "PutRequest": "1 key bytes, 2 value bytes, 3 lease int64",
    "DeleteRangeRequest": "1 key bytes, 2 range_end bytes",
    "RequestOp": "1 request_range |RangeRequest, 2 request_put |PutRequest, "
    "3 request_delete_range |DeleteRangeRequest",
    "Compare": "1 result int32, 2 target int32, 3 key bytes, 4 version |int64, "
    "5 create_revision |int64, 6 mod_revision |int64",
    "TxnRequest": "1 compare *Compare, 2 success *RequestOp, 3 failure *RequestOp",
    "TxnResponse": "1 header ResponseHeader, 2 succeeded bool",
    "WatchCreateRequest": "1 key bytes, 2 range_end bytes, 3 start_revision int64, "
    "7 watch_id int64",
    "WatchCancelRequest": "1 watch_id int64",
    "WatchProgressRequest": "",
    "WatchRequest": "1 create_request |WatchCreateRequest, 2 cancel_request |WatchCancelRequest, "
    "3 progress_request |WatchProgressRequest",
    "WatchResponse": "1 header ResponseHeader, 2 watch_id int64, 3 created bool, 4 canceled bool, "
    "5 compact_revision int64, 6 cancel_reason string, 11 events *Event",
    "LeaseGrantRequest": "1 TTL int64, 2 ID int64",
    "LeaseGrantResponse": "1 header ResponseHeader, 2 ID int64, 3 TTL int64, 4 error string",
    "LeaseRevokeRequest": "1 ID int64",
    "LeaseRevokeResponse": "1 header ResponseHeader",
    "LeaseKeepAliveRequest": "1 ID int64",
    "LeaseKeepAliveResponse": "1 header ResponseHeader, 2 ID int64, 3 TTL int64",
    "AuthenticateRequest": "1 name string, 2 password string",
    "AuthenticateResponse": "1 header ResponseHeader, 2 token string",
    "StatusRequest": "",
    "StatusResponse": "1 header ResponseHeader, 2 version string, 3 dbSize int64, 4 leader uint64, "
    "6 raftTerm uint64, 8 errors *string, 9 dbSizeInUse int64, 12 dbSizeQuota int64",
    "AlarmRequest": "1 action int32, 2 memberID uint64, 3 alarm int32",
    "AlarmMember": "1 memberID uint64, 2 alarm int32",
    "AlarmResponse": "1 header ResponseHeader, 2 alarms *AlarmMember",
}
"""By message: number, name and type of each field; `*` is repeated, `|` one choice of several."""

EVENT_DELETE = 1
COMPARE_EQUAL, COMPARE_GREATER, COMPARE_LESS = 0, 1, 2
COMPARE_VERSION, COMPARE_MOD = 0, 2
ALARM_NOSPACE, ALARM_CORRUPT = 1, 2


def _file() -> FileDescriptorProto:
    file = FileDescriptorProto(name="pyvxlan/etcd.proto", package=_PACKAGE, syntax="proto3")
    for message_name, fields in _FIELDS.items():
        message = file.message_type.add(name=message_name)
        for text in filter(None, fields.split(", ")):
            number, name, kind = text.split(" ")
            field = message.field.add(
                name=name, number=int(number), label=FieldDescriptorProto.LABEL_OPTIONAL
            )
            if kind.startswith("*"):
                field.label = FieldDescriptorProto.LABEL_REPEATED
            if kind.startswith("|"):
                if not message.oneof_decl:
                    message.oneof_decl.add(name="choice")
                field.oneof_index = 0
            kind = kind.lstrip("*|")
            if kind in _FIELDS:
                field.type = FieldDescriptorProto.TYPE_MESSAGE
                field.type_name = f".{_PACKAGE}.{kind}"
            else:
                field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    return file


_pool = DescriptorPool()
_pool.Add(_file())


def _message(name: str) -> Callable[..., Message]:
    return GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


RangeRequest = _message("RangeRequest")
PutRequest = _message("PutRequest")
DeleteRangeRequest = _message("DeleteRangeRequest")
RequestOp = _message("RequestOp")
Compare = _message("Compare")
TxnRequest = _message("TxnRequest")
WatchCreateRequest = _message("WatchCreateRequest")
WatchCancelRequest = _message("WatchCancelRequest")
WatchProgressRequest = _message("WatchProgressRequest")
WatchRequest = _message("WatchRequest")
LeaseGrantRequest = _message("LeaseGrantRequest")
LeaseRevokeRequest = _message("LeaseRevokeRequest")
LeaseKeepAliveRequest = _message("LeaseKeepAliveRequest")
AuthenticateRequest = _message("AuthenticateRequest")
StatusRequest = _message("StatusRequest")
AlarmRequest = _message("AlarmRequest")


@dataclass(frozen=True, slots=True)
class Method:
    """One call of etcd's API."""

    path: str
    """As gRPC has it: /package.Service/Method."""
    parse: Callable[[bytes], Message]
    """Reads the answer."""


def _method(service: str, name: str, response: str = "") -> Method:
    answer: Any = _message(response or f"{name}Response")
    return Method(f"/etcdserverpb.{service}/{name}", answer.FromString)


RANGE = _method("KV", "Range")
TXN = _method("KV", "Txn")
WATCH = _method("Watch", "Watch")
LEASE_GRANT = _method("Lease", "LeaseGrant")
LEASE_REVOKE = _method("Lease", "LeaseRevoke")
LEASE_KEEP_ALIVE = _method("Lease", "LeaseKeepAlive")
AUTHENTICATE = _method("Auth", "Authenticate")
STATUS = _method("Maintenance", "Status")
ALARM = _method("Maintenance", "Alarm")


def emit(message: Message) -> bytes:
    """Writes a message."""
    data: bytes = message.SerializeToString()
    return data
