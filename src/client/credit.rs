//! Credit: how many bytes a server may send ahead of what the application has taken.

/// Credit that the server always has, if it was given so much: enough for any message.
const MESSAGE_CREDIT_BYTES: u32 = 4 << 20;

/// What is owed to the server. It is given back in portions.
#[derive(Debug)]
pub(super) struct Credit {
    /// Bytes that were taken and not yet given back.
    owed_bytes: u32,
    /// Give back at least so many bytes at once: what is held back never keeps the server from
    /// sending a large message.
    portion_bytes: u32,
}

impl Credit {
    /// Begins with `credit_bytes` given and nothing owed.
    pub(super) fn new(credit_bytes: u32) -> Self {
        let spare_bytes = credit_bytes.saturating_sub(MESSAGE_CREDIT_BYTES);
        let portion_bytes = spare_bytes.min(credit_bytes / 4).max(1);
        Self { owed_bytes: 0, portion_bytes }
    }

    /// Notes that bytes were taken.
    pub(super) fn owe(&mut self, bytes: u32) {
        self.owed_bytes = self.owed_bytes.saturating_add(bytes);
    }

    /// Returns how much to give back now, if it is enough for a portion.
    pub(super) fn due(&self) -> Option<u32> {
        (self.owed_bytes >= self.portion_bytes).then_some(self.owed_bytes)
    }

    /// Notes that bytes were given back.
    pub(super) fn on_given(&mut self, bytes: u32) {
        self.owed_bytes -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_credit_goes_back_in_portions_and_small_credit_at_once() {
        let mut large = Credit::new(8 << 20);
        large.owe((2 << 20) - 1);
        assert_eq!(large.due(), None);
        large.owe(1);
        assert_eq!(large.due(), Some(2 << 20));
        large.on_given(2 << 20);
        assert_eq!(large.due(), None);
        let mut small = Credit::new(1 << 20);
        assert_eq!(small.due(), None, "nothing is owed");
        small.owe(1);
        assert_eq!(small.due(), Some(1));
    }
}
