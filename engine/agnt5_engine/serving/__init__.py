"""What this processor's partitions answer: runs, histories, lists; and the commands they take."""
