"""A mail server for tests: STARTTLS, then AUTH, then mail, which it prints as JSON.

Arguments: certificate chain, key, user, password, and a file of DNS records as JSON (name: text),
with which DKIM signatures are verified; and a port, or 0. The first line it prints is its port; every
later one is a message as Python's own email package understands it. It ends with its standard input.
"""

import asyncio
import email
import email.policy
import json
import logging
import ssl
import sys

import dkim
from aiosmtpd.smtp import SMTP, AuthResult

# Refused handshakes and passwords are what the tests do, not news.
logging.getLogger("mail").setLevel(logging.CRITICAL)

CERTIFICATE, KEY, USER, PASSWORD, RECORDS, PORT = sys.argv[1:7]


def record(name, timeout=5):
    with open(RECORDS) as records:
        found = json.load(records).get(name.decode().rstrip("."))
    return found and found.encode()


def signed(content):
    try:
        return dkim.verify(content, dnsfunc=record)
    except dkim.DKIMException as error:
        return str(error)


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("nobody@"):
            return "550 5.1.1 there is no such user"
        if address.startswith("later@") and address not in server.put_off:
            server.put_off.add(address)
            return "451 4.7.1 come back later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        text = message.get_body(("plain",))
        html = message.get_body(("html",))
        # Any header or word changed on the way, and nobody answers for it.
        changed = [
            envelope.content.replace(b"Subject: ", b"Subject: Re: ", 1),
            envelope.content.replace(b"One-Click", b"Two-Click", 1),
            envelope.content.replace(b"second line", b"another line", 1),
        ]
        print(
            json.dumps(
                {
                    "tls": session.ssl is not None,
                    "user": session.auth_data,
                    "mail_from": envelope.mail_from,
                    "recipients": envelope.rcpt_tos,
                    "headers": [[name, str(value)] for name, value in message.items()],
                    "subject": message["subject"],
                    "from": message["from"],
                    "to": message["to"],
                    "reply_to": message["reply-to"],
                    "message_id": message["message-id"],
                    "date": message["date"],
                    "content_type": message.get_content_type(),
                    "text": text.get_content() if text else None,
                    "html": html.get_content() if html else None,
                    "dkim": signed(envelope.content),
                    "dkim_changed": [signed(content) for content in changed],
                    "defects": [str(defect) for defect in message.defects],
                }
            ),
            flush=True,
        )
        if "dies@example.com" in envelope.rcpt_tos and not server.put_off:
            # It has the message, and nobody is told.
            server.put_off.add("dies")
            server.transport.abort()
        if "refuses@example.com" in envelope.rcpt_tos:
            return "554 5.7.1 we do not like it"
        return "250 2.0.0 taken"


def authenticate(server, session, envelope, mechanism, data):
    user, password = data.login.decode(), data.password.decode()
    if (user, password) == (USER, PASSWORD):
        session.auth_data = user
        return AuthResult(success=True, auth_data=user)
    # Not handled, so that aiosmtpd answers 535 itself.
    return AuthResult(success=False, handled=False)


async def main():
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(CERTIFICATE, KEY)
    put_off = set()

    def connection():
        smtp = SMTP(
            Handler(),
            hostname="mail.test",
            tls_context=tls,
            require_starttls=True,
            authenticator=authenticate,
            auth_required=True,
        )
        smtp.put_off = put_off
        return smtp

    loop = asyncio.get_running_loop()
    server = await loop.create_server(connection, "127.0.0.1", int(PORT))
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


asyncio.run(main())
