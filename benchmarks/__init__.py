"""What xfrmpy costs, beside what strongSwan costs on the same machine in the same run."""
