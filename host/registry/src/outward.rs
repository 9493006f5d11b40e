//! Where a registry may send us: elsewhere over https, never inwards to this machine or to the
//! metadata service of a cloud.

use reqwest::redirect::{Action, Attempt};
use std::net::{IpAddr, SocketAddr};

/// The most redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// Whether to follow a redirect. Registries redirect blobs to storage elsewhere, over https.
pub(crate) fn judge(attempt: Attempt<'_>, plain: bool, local: bool) -> Action {
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error(format!("more than {MAX_REDIRECTS} times: this is a loop"));
    }
    let url = attempt.url();
    if url.scheme() != "https" && !(plain && url.scheme() == "http") {
        let why = format!("to {}:, which is not https", url.scheme());
        return attempt.error(why);
    }
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let inward = host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(is_inward);
    if inward && !local {
        let why = format!("to {host}, an address of this machine");
        return attempt.error(why);
    }
    attempt.follow()
}

/// Addresses that no registry sends anybody to: this machine, and the link (where clouds keep
/// their metadata). Private networks are allowed: registries of companies live there.
fn is_inward(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_broadcast()
        }
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unicast_link_local()
                || ip.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
        }
    }
}

/// Resolves names, and leaves out inward addresses for all names but the registry's own.
pub(crate) struct Outward {
    /// The registry's own host.
    pub home: String,
}

impl reqwest::dns::Resolve for Outward {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let name = name.as_str().to_owned();
        let home = name == self.home;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let addresses: Vec<SocketAddr> = found
                .filter(|address| home || !is_inward(address.ip()))
                .collect();
            if addresses.is_empty() {
                let why = format!("{name} has no address that a registry may redirect to");
                return Err(why.into());
            }
            Ok(Box::new(addresses.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::is_inward;

    #[test]
    fn this_machine_and_the_metadata_service_are_inward() {
        for (ip, inward) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("0.0.0.0", true),
            ("169.254.169.254", true),
            ("::1", true),
            ("::ffff:169.254.169.254", true),
            ("fe80::1", true),
            ("fd00:ec2::254", true),
            ("10.0.0.1", false),
            ("192.168.1.1", false),
            ("203.0.113.7", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_inward(ip.parse().unwrap()), inward, "{ip}");
        }
    }
}
