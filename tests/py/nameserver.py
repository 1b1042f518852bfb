"""A name server for tests, for everything below `test`: each further question for an address is
answered with the next of the addresses in the name's turn.

Arguments: the address to listen on (port 53), and the addresses. Prints a line when it listens, and
every question after that as "TYPE name". It ends with its standard input.
"""

import itertools
import sys

from dnslib import A, QTYPE, RR
from dnslib.server import BaseResolver, DNSLogger, DNSServer

turns = {}


class Turns(BaseResolver):
    def resolve(self, request, handler):
        kind, name = QTYPE[request.q.qtype], str(request.q.qname)
        # One write, since each question has a thread of its own.
        sys.stdout.write(f"{kind} {name.rstrip('.')}\n")
        sys.stdout.flush()
        reply = request.reply()
        if kind == "A":
            turn = turns.setdefault(name, itertools.cycle(sys.argv[2:]))
            reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(next(turn)), ttl=0))
        return reply


server = DNSServer(Turns(), address=sys.argv[1], port=53, logger=DNSLogger(logf=lambda _: None))
server.start_thread()
print("listens", flush=True)
sys.stdin.read()
