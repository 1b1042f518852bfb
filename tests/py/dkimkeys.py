"""Keys for tests of DKIM: prints {kind: {"key": ..., "record": ...}} as JSON, the record as DNS has it."""

import base64
import json

import nacl.signing
import rsa


def text(data):
    return base64.b64encode(data).decode()


def der(tag, content):
    size = len(content)
    length = [size] if size < 128 else [0x82, size >> 8, size & 0xFF]
    return bytes([tag, *length]) + content


public, private = rsa.newkeys(2048)
# A record holds a SubjectPublicKeyInfo (RFC 6376, section 3.6.1); 1.2.840.113549.1.1.1 is RSA.
algorithm = der(0x30, der(0x06, bytes.fromhex("2a864886f70d010101")) + der(0x05, b""))
info = der(0x30, algorithm + der(0x03, b"\0" + public.save_pkcs1("DER")))
small = nacl.signing.SigningKey.generate()
print(
    json.dumps(
        {
            "rsa": {
                "key": private.save_pkcs1().decode(),
                "record": f"v=DKIM1; k=rsa; p={text(info)}",
            },
            "ed25519": {
                "key": text(small.encode()),
                "record": f"v=DKIM1; k=ed25519; p={text(small.verify_key.encode())}",
            },
        }
    )
)
