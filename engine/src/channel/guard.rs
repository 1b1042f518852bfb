//! Where the engine connects to at all. A tenant names the receivers, and the engine stands in the
//! operator's network: without this, a channel would be a way to reach what only that network may.
//!
//! Guarantees:
//! - An address is checked after names are resolved, and the connection goes to the very address that
//!   was checked: a name that leads elsewhere at its next look-up gains nothing.
//! - Only global unicast addresses pass, besides the networks that the operator allows. An IPv4 address
//!   within an IPv6 one counts as what it is, or not at all.
//! - It holds for HTTP, SMTP and databases alike, for names and for literal addresses.
//!
//! Ranges: IANA's special-purpose address registries for IPv4 and IPv6, with RFC 6890 and what was
//! registered since; and the addresses at which clouds hand out credentials, which lie in them but for
//! one.

use ipnet::IpNet;
use serde::Deserialize;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// A network that the operator allows, "10.0.0.0/8" or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network(IpNet);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let network = text
            .parse()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let network = network.map_err(|_| {
            format!("{text:?} is not a network; write \"10.0.0.0/8\" or an address")
        })?;
        Ok(Self(network.trunc()))
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What is refused, and what is allowed all the same. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    allowed: Arc<[Network]>,
}

/// Why nothing is sent there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub address: IpAddr,
    /// What the address is: "private", "loopback".
    pub what: &'static str,
}

/// For operators, and their log. Tenants are told the same sentence of every address (see `outgoing`):
/// by what a name leads to they would map the operator's network.
impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}", self.address, self.what)
    }
}

impl std::error::Error for Refused {}

impl Guard {
    pub fn new(allowed: &[Network]) -> Self {
        Self {
            allowed: allowed.into(),
        }
    }

    /// Whether a connection may go to this address.
    ///
    /// # Errors
    /// What the address is, if not.
    pub fn check(&self, address: IpAddr) -> Result<(), Refused> {
        let allowed = |address: IpAddr| self.allowed.iter().any(|net| net.0.contains(&address));
        let inner = match address {
            IpAddr::V6(outer) => within(outer).map(IpAddr::V4),
            IpAddr::V4(_) => None,
        };
        if allowed(address) || inner.is_some_and(allowed) {
            return Ok(());
        }
        let what = match (address, inner) {
            (_, Some(IpAddr::V4(inner))) => special_v4(inner),
            (IpAddr::V4(address), _) => special_v4(address),
            (IpAddr::V6(address), _) => special_v6(address),
        };
        match what {
            Some(what) => Err(Refused { address, what }),
            None => Ok(()),
        }
    }

    /// The addresses of a host that a connection may go to, be it a name or an address.
    ///
    /// # Errors
    /// When there are none. The first [`Refused`] is inside if that is why.
    pub async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let found = tokio::net::lookup_host((host, port)).await?;
        self.allowed_of(found)
    }

    fn allowed_of(&self, found: impl Iterator<Item = SocketAddr>) -> io::Result<Vec<SocketAddr>> {
        let mut refused = None;
        let mut good = Vec::new();
        for address in found {
            match self.check(address.ip()) {
                Ok(()) => good.push(address),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        match refused {
            Some(error) if good.is_empty() => {
                Err(io::Error::new(io::ErrorKind::PermissionDenied, error))
            }
            _ if good.is_empty() => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the name has no address",
            )),
            _ => Ok(good),
        }
    }
}

/// The IPv4 address that a translator would make of an IPv6 one.
fn within(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, high, low] = address.segments();
    let mapped = [a, b, c, d, e, f] == [0, 0, 0, 0, 0, 0xffff];
    let nat64 = [a, b, c, d, e, f] == [0x64, 0xff9b, 0, 0, 0, 0];
    (mapped || nat64).then(|| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

/// What an IPv4 address is, unless it is somewhere on the internet.
fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    let in_net = |net: [u8; 4], bits: u32| {
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or_default();
        (address.to_bits() ^ Ipv4Addr::from(net).to_bits()) & mask == 0
    };
    let special = [
        ([0, 0, 0, 0], 8, "an address of this network"),
        ([10, 0, 0, 0], 8, "private"),
        ([100, 64, 0, 0], 10, "shared address space"),
        ([127, 0, 0, 0], 8, "loopback"),
        ([168, 63, 129, 16], 32, "a cloud's metadata service"),
        ([169, 254, 0, 0], 16, "link-local"),
        ([172, 16, 0, 0], 12, "private"),
        ([192, 0, 0, 0], 24, "reserved"),
        ([192, 0, 2, 0], 24, "for documentation"),
        ([192, 88, 99, 0], 24, "reserved"),
        ([192, 168, 0, 0], 16, "private"),
        ([198, 18, 0, 0], 15, "for benchmarks"),
        ([198, 51, 100, 0], 24, "for documentation"),
        ([203, 0, 113, 0], 24, "for documentation"),
        ([224, 0, 0, 0], 4, "multicast"),
        ([240, 0, 0, 0], 4, "reserved"),
    ];
    special
        .into_iter()
        .find(|(net, bits, _)| in_net(*net, *bits))
        .map(|(_, _, what)| what)
}

/// What an IPv6 address is, unless it is somewhere on the internet. What tunnels IPv4 (6to4, Teredo)
/// is not: where it comes out is another network's affair.
fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    let in_net = |net: [u16; 8], bits: u32| {
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or_default();
        (address.to_bits() ^ Ipv6Addr::from(net).to_bits()) & mask == 0
    };
    let special = [
        ([0, 0, 0, 0, 0, 0, 0, 0], 128, "unspecified"),
        ([0, 0, 0, 0, 0, 0, 0, 1], 128, "loopback"),
        ([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, "private"),
        ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, "link-local"),
        ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, "multicast"),
        ([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, "a Teredo tunnel"),
        ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, "for documentation"),
        ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, "reserved"),
        ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, "a 6to4 tunnel"),
        ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, "for documentation"),
    ];
    let known = special
        .into_iter()
        .find(|(net, bits, _)| in_net(*net, *bits));
    match known {
        Some((_, _, what)) => Some(what),
        None if in_net([0x2000, 0, 0, 0, 0, 0, 0, 0], 3) => None,
        None => Some("reserved"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(address: &str) -> Option<&'static str> {
        let address = address.parse().unwrap();
        Guard::default()
            .check(address)
            .err()
            .map(|error| error.what)
    }

    #[test]
    fn only_the_internet_is_reached() {
        for (address, what) in [
            ("0.0.0.0", "an address of this network"),
            ("0.1.2.3", "an address of this network"),
            ("10.0.0.0", "private"),
            ("10.255.255.255", "private"),
            ("100.64.0.0", "shared address space"),
            ("100.100.100.200", "shared address space"),
            ("100.127.255.255", "shared address space"),
            ("127.0.0.1", "loopback"),
            ("127.255.255.254", "loopback"),
            ("168.63.129.16", "a cloud's metadata service"),
            ("169.254.0.1", "link-local"),
            ("169.254.169.254", "link-local"),
            ("172.16.0.1", "private"),
            ("172.31.255.255", "private"),
            ("192.0.0.192", "reserved"),
            ("192.0.2.7", "for documentation"),
            ("192.88.99.1", "reserved"),
            ("192.168.1.1", "private"),
            ("198.18.0.1", "for benchmarks"),
            ("198.19.255.255", "for benchmarks"),
            ("198.51.100.7", "for documentation"),
            ("203.0.113.7", "for documentation"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.250", "multicast"),
            ("240.0.0.1", "reserved"),
            ("255.255.255.255", "reserved"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::2", "reserved"),
            ("::127.0.0.1", "reserved"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:10.1.2.3", "private"),
            ("::ffff:169.254.169.254", "link-local"),
            ("::ffff:0:127.0.0.1", "reserved"),
            ("64:ff9b::7f00:1", "loopback"),
            ("64:ff9b::a00:1", "private"),
            ("64:ff9b::a9fe:a9fe", "link-local"),
            ("64:ff9b:1::1", "reserved"),
            ("100::1", "reserved"),
            ("2001::1", "a Teredo tunnel"),
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "a Teredo tunnel"),
            ("2001:2::1", "reserved"),
            ("2001:10::1", "reserved"),
            ("2001:20::1", "reserved"),
            ("2001:db8::1", "for documentation"),
            ("2002:7f00:1::", "a 6to4 tunnel"),
            ("2002:a9fe:a9fe::1", "a 6to4 tunnel"),
            ("3fff::1", "for documentation"),
            ("4000::1", "reserved"),
            ("5f00::1", "reserved"),
            ("fc00::1", "private"),
            ("fd00:ec2::254", "private"),
            ("fdff::1", "private"),
            ("fe80::1", "link-local"),
            ("febf::1", "link-local"),
            ("fec0::1", "reserved"),
            ("ff02::1", "multicast"),
        ] {
            assert_eq!(refused(address), Some(what), "{address}");
        }
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "168.63.129.15",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2001:200::1",
            "2003::1",
            "2606:4700:4700::1111",
            "3ffe::1",
        ] {
            assert_eq!(refused(address), None, "{address}");
        }
    }

    #[test]
    fn an_operator_allows_networks() {
        let networks = ["10.1.0.0/16", "127.0.0.1", "fd00:7::/32"];
        let networks: Vec<Network> = networks.iter().map(|net| net.parse().unwrap()).collect();
        let guard = Guard::new(&networks);
        let passes = |address: &str| guard.check(address.parse().unwrap()).is_ok();
        for address in [
            "10.1.2.3",
            "::ffff:10.1.2.3",
            "127.0.0.1",
            "fd00:7::1",
            "1.1.1.1",
        ] {
            assert!(passes(address), "{address}");
        }
        for address in ["10.2.0.1", "127.0.0.2", "fd00:8::1", "::1"] {
            assert!(!passes(address), "{address}");
        }
        let error = "10.0.0.0/33".parse::<Network>().unwrap_err();
        assert_eq!(
            error,
            "\"10.0.0.0/33\" is not a network; write \"10.0.0.0/8\" or an address"
        );
    }

    /// A name with several addresses is reached at those that may be reached.
    #[test]
    fn what_may_be_reached_of_a_name_is_used() {
        let guard = Guard::default();
        let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let (inside, outside) = (address("10.0.0.1:0"), address("1.1.1.1:0"));
        let both = guard.allowed_of([inside, outside].into_iter()).unwrap();
        assert_eq!(both, [outside]);
        let error = guard.allowed_of([inside].into_iter()).unwrap_err();
        let refused = error.get_ref().unwrap().downcast_ref::<Refused>().unwrap();
        assert_eq!(refused.what, "private");
        let none = guard.allowed_of([].into_iter()).unwrap_err();
        assert_eq!(none.to_string(), "the name has no address");
    }
}
