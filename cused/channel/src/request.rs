//! Bytes from the kernel to a typed request.
//!
//! Owns what counts as a well-formed request. Borrowed data points into the bytes it was given;
//! nothing is allocated, and no input makes it panic.

use zerocopy::FromBytes;

use crate::wire::{self, InHeader, opcode};

/// One request, with what every request carries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) header: InHeader,
    pub(crate) operation: Operation<'a>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation<'a> {
    Init(wire::InitIn),
    CuseInit(wire::CuseInitIn),
    Open(wire::OpenIn),
    Release(wire::ReleaseIn),
    Read(wire::ReadIn),
    Write(wire::WriteIn, &'a [u8]),
    Ioctl(wire::IoctlIn, &'a [u8]),
    Poll(wire::PollIn),
    Interrupt(wire::InterruptIn),
    GetAttr,
    SetAttr(wire::SetattrIn),
    StatFs,
    /// Needs no answer: FORGET, BATCH_FORGET, NOTIFY_REPLY.
    Unanswered,
    /// Has nothing to do here and succeeds: FLUSH, FSYNC, ACCESS, DESTROY.
    Nothing,
    Unknown,
}

/// A request that cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    /// The request to refuse, if the bytes reach far enough to say so and it takes an answer.
    pub(crate) unique: Option<u64>,
}

impl<'a> Request<'a> {
    /// Decodes the bytes of one read(2).
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let Ok((header, body)) = InHeader::read_from_prefix(bytes) else {
            return Err(Malformed { unique: None });
        };
        let answered = takes_answer(header.opcode) && header.unique != 0;
        let malformed = Malformed { unique: answered.then_some(header.unique) };
        if header.len as usize != bytes.len() {
            return Err(malformed);
        }
        let operation = Operation::decode(header.opcode, body).ok_or(malformed)?;
        Ok(Self { header, operation })
    }
}

impl<'a> Operation<'a> {
    fn decode(code: u32, body: &'a [u8]) -> Option<Self> {
        Some(match code {
            opcode::IOCTL => {
                let (ioctl, data) = wire::IoctlIn::read_from_prefix(body).ok()?;
                Self::Ioctl(ioctl, data.get(..ioctl.in_size as usize)?)
            }
            opcode::READ => Self::Read(fixed(body)?),
            opcode::WRITE => {
                let (write, data) = wire::WriteIn::read_from_prefix(body).ok()?;
                Self::Write(write, data.get(..write.size as usize)?)
            }
            opcode::POLL => Self::Poll(fixed(body)?),
            opcode::OPEN => Self::Open(fixed(body)?),
            opcode::RELEASE => Self::Release(fixed(body)?),
            opcode::INTERRUPT => Self::Interrupt(fixed(body)?),
            opcode::GETATTR => Self::GetAttr,
            opcode::SETATTR => Self::SetAttr(fixed(body)?),
            opcode::STATFS => Self::StatFs,
            opcode::FORGET | opcode::BATCH_FORGET | opcode::NOTIFY_REPLY => Self::Unanswered,
            opcode::FLUSH | opcode::FSYNC | opcode::ACCESS | opcode::DESTROY => Self::Nothing,
            opcode::INIT => Self::Init(fixed(body)?),
            opcode::CUSE_INIT => Self::CuseInit(fixed(body)?),
            _ => Self::Unknown,
        })
    }
}

/// A fixed structure at the front. A longer body is a newer protocol's and is accepted.
fn fixed<T: FromBytes>(body: &[u8]) -> Option<T> {
    T::read_from_prefix(body).ok().map(|(value, _)| value)
}

/// Whether the kernel waits for an answer to this kind of request. An answer to INTERRUPT would be
/// allowed, but EAGAIN makes the kernel send it again and ENOSYS turns interrupts off for good.
pub(crate) fn takes_answer(code: u32) -> bool {
    !matches!(
        code,
        opcode::FORGET | opcode::BATCH_FORGET | opcode::NOTIFY_REPLY | opcode::INTERRUPT
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn message(code: u32, body: &[u8]) -> Vec<u8> {
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode: code,
            unique: 0x1122_3344_5566_7788,
            nodeid: 1,
            uid: 1000,
            gid: 100,
            pid: 4242,
            ..InHeader::default()
        };
        [header.as_bytes(), body].concat()
    }

    /// An IOCTL written out byte by byte, so that a wrong structure cannot agree with itself.
    #[test]
    fn an_ioctl_is_decoded_from_hand_made_bytes() {
        let mut bytes = Vec::new();
        for word in [76u32, 39] {
            bytes.extend(word.to_ne_bytes());
        }
        for word in [6u64, 1] {
            bytes.extend(word.to_ne_bytes());
        }
        for word in [1000u32, 100, 4242, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(0xdead_beef_u64.to_ne_bytes()); // fh
        bytes.extend(0b1001_u32.to_ne_bytes()); // flags: compat, 32 bit
        bytes.extend(0x3bc3_u32.to_ne_bytes()); // command
        bytes.extend(0x7fff_0000_1234_u64.to_ne_bytes()); // argument
        bytes.extend(4u32.to_ne_bytes()); // in_size
        bytes.extend(8u32.to_ne_bytes()); // out_size
        bytes.extend([1, 2, 3, 4]);
        assert_eq!(bytes.len(), 76);

        let request = Request::decode(&bytes).unwrap();
        assert_eq!(request.header.unique, 6);
        assert_eq!(request.header.pid, 4242);
        let Operation::Ioctl(ioctl, data) = request.operation else { panic!("{request:?}") };
        assert_eq!(ioctl.fh, 0xdead_beef);
        assert_eq!(ioctl.flags, wire::IOCTL_COMPAT | wire::IOCTL_32BIT);
        assert_eq!(ioctl.cmd, 0x3bc3);
        assert_eq!(ioctl.arg, 0x7fff_0000_1234);
        assert_eq!(ioctl.out_size, 8);
        assert_eq!(data, [1, 2, 3, 4]);
    }

    #[test]
    fn data_shorter_than_announced_is_malformed_and_can_be_refused() {
        let ioctl = wire::IoctlIn { in_size: 5, ..Default::default() };
        let bytes = message(opcode::IOCTL, &[ioctl.as_bytes(), &[0; 4]].concat());
        let malformed = Request::decode(&bytes).unwrap_err();
        assert_eq!(malformed.unique, Some(0x1122_3344_5566_7788));

        let write = wire::WriteIn { size: u32::MAX, ..Default::default() };
        let bytes = message(opcode::WRITE, write.as_bytes());
        assert!(Request::decode(&bytes).is_err());
    }

    #[test]
    fn a_length_that_is_not_the_number_of_bytes_read_is_malformed() {
        let mut bytes = message(opcode::GETATTR, &[0; 16]);
        assert!(Request::decode(&bytes).is_ok());
        bytes.push(0);
        assert!(Request::decode(&bytes).is_err());
        bytes.truncate(50);
        assert!(Request::decode(&bytes).is_err());
    }

    #[test]
    fn too_short_for_a_header_names_no_request() {
        assert_eq!(Request::decode(&[0; 39]).unwrap_err(), Malformed { unique: None });
        assert_eq!(Request::decode(&[]).unwrap_err(), Malformed { unique: None });
    }

    #[test]
    fn a_malformed_interrupt_or_forget_is_never_answered() {
        for code in [opcode::INTERRUPT, opcode::FORGET, opcode::BATCH_FORGET] {
            let mut bytes = message(code, &[]);
            bytes[0] = 0xff;
            assert_eq!(Request::decode(&bytes).unwrap_err(), Malformed { unique: None });
        }
    }

    #[test]
    fn an_interrupt_names_its_target() {
        let body = wire::InterruptIn { unique: 6 };
        let bytes = message(opcode::INTERRUPT, body.as_bytes());
        let request = Request::decode(&bytes).unwrap();
        assert!(matches!(request.operation, Operation::Interrupt(i) if i.unique == 6));
    }

    #[test]
    fn a_longer_body_than_ours_is_a_newer_protocol_and_is_accepted() {
        let bytes = message(opcode::OPEN, &[7; 64]);
        let request = Request::decode(&bytes).unwrap();
        assert!(matches!(request.operation, Operation::Open(open) if open.flags == 0x0707_0707));
    }

    #[test]
    fn an_unknown_opcode_is_decoded_as_such() {
        let bytes = message(77, &[]);
        assert!(matches!(Request::decode(&bytes).unwrap().operation, Operation::Unknown));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Request::decode(&bytes);
        }

        #[test]
        fn random_bodies_never_panic(
            code in prop_oneof![0u32..52, Just(4096u32), any::<u32>()],
            body in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            if let Ok(request) = Request::decode(&message(code, &body))
                && let Operation::Ioctl(ioctl, data) = request.operation {
                    prop_assert_eq!(data.len(), ioctl.in_size as usize);
                }
        }
    }
}
